"""The shape of a service, the same for ttrpc and gRPC: names, request types, coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from google.protobuf.message import Message

Handler = Callable[[Any], Awaitable[Message]]
"""Takes a message of the method's request type. Errors are raised as ShimError."""


class Method(NamedTuple):
    """One unary method."""

    request_type: type[Message]
    handler: Handler


Services = Mapping[str, Mapping[str, Method]]
"""Full service name -> method name -> method."""
