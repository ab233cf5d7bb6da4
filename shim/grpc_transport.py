"""The same services over gRPC, for `transport = "grpc"`. The only user of grpcio, loaded only then.

grpcio cannot adopt a listening descriptor, so it listens on a socket in the state directory and connections
to the shim's address, which was opened by the `start` verb, are handed through to it. grpcio runs threads;
the shim never forks, so that is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from .errors import status_of
from .ttrpc.service import Method, Services

_CHUNK = 65536


class GrpcServer:
    """Serves *services*; same shape as TtrpcServer."""

    def __init__(self, services: Services, path: Path) -> None:
        self._path = path
        self._server = grpc.aio.server()
        self._front: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        handlers = [
            grpc.method_handlers_generic_handler(
                service,
                {
                    name: grpc.unary_unary_rpc_method_handler(
                        _handler(method),
                        request_deserializer=method.request_type.FromString,
                        response_serializer=_serialise,
                    )
                    for name, method in methods.items()
                },
            )
            for service, methods in services.items()
        ]
        self._server.add_generic_rpc_handlers(tuple(handlers))

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections from *listener*; the server owns it from now on."""
        self._path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()
        self._front = await asyncio.start_unix_server(self._relay, sock=listener)

    async def close(self, grace_s: float = 1.0) -> None:
        """Stop accepting, let answers leave for at most *grace_s*."""
        if self._front is not None:
            self._front.close()
        await self._server.stop(grace_s)
        for relay in list(self._relays):
            relay.cancel()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(self._path))
        for source, target in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(_copy(source, target))
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
    target.close()


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


def _handler(method: Method) -> Callable[[Any, Any], Awaitable[Message]]:
    async def handle(request: Any, context: Any) -> Message:
        # gRPC cancels a handler whose client has gone; a Create must come to its end all the same.
        work = asyncio.ensure_future(method.handler(request))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda task: _unheard(method, request, task))
            raise
        except Exception as error:
            code, text = status_of(error)
            await context.abort(grpc.StatusCode(_STATUS[int(code)]), text)
            raise AssertionError("abort returned") from error

    return handle


def _unheard(method: Method, request: Any, work: asyncio.Future[Message]) -> None:
    if work.cancelled() or work.exception() is not None or method.unheard is None:
        return
    task = asyncio.ensure_future(method.unheard(request))
    _UNHEARD.add(task)
    task.add_done_callback(_UNHEARD.discard)


_UNHEARD: set[asyncio.Future[None]] = set()
"""Keeps the tasks alive: the loop itself does not."""
_STATUS = {code.value[0]: code.value for code in grpc.StatusCode}
