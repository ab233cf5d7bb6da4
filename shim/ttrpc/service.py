"""The shape of a service, the same for ttrpc and gRPC: names, request types, coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from google.protobuf.message import Message

Handler = Callable[[Any], Awaitable[Message]]
"""Takes a message of the method's request type. Errors are raised as ShimError."""


class Method(NamedTuple):
    """One unary method.

    ``unheard`` is called with the request when the handler has come to a good end and its client left before
    the answer: it takes back what nobody knows of.
    """

    request_type: type[Message]
    handler: Handler
    unheard: Callable[[Any], Awaitable[None]] | None = None


Services = Mapping[str, Mapping[str, Method]]
"""Full service name -> method name -> method."""
