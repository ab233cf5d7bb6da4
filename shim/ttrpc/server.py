"""A ttrpc server on an asyncio loop: unary methods, any number of connections.

Started by shim/server.py on the listening socket that the `start` verb opened; lives as long as the
shim. Each request is a task of its own, answers leave in any order. ttrpc has no cancellation message,
so the deadline in the request is kept here; a request outlives its connection (containerd may vanish in
the middle of a Create, and the work has to come to an end all the same, and be taken back then).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable

from google.protobuf.message import DecodeError

from ..errors import Code, status_of
from ..protos.generated import ttrpc_pb2
from . import framing
from .service import Method, Services

_log = logging.getLogger("shim.ttrpc")

_UCRED = struct.Struct("iII")  # struct ucred of SO_PEERCRED, unix(7)


class TtrpcServer:
    """Serves *services* to every connection given to it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._connections: set[_Connection] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections from *listener*, which must be listening; the server owns it from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connection, sock=listener)

    def serve(self, stream: socket.socket) -> asyncio.Task[None]:
        """Serve one connected socket (tests)."""

        async def attach() -> None:
            await asyncio.get_running_loop().create_connection(self._connection, sock=stream)

        return asyncio.ensure_future(attach())

    async def close(self, grace_s: float = 1.0) -> None:
        """Stop accepting, let running answers leave for at most *grace_s*, close every connection."""
        if self._server is not None:
            self._server.close()
        if self._requests:
            await asyncio.wait(self._requests, timeout=grace_s)
        for connection in list(self._connections):
            connection.close()

    def _connection(self) -> _Connection:
        return _Connection(self)

    # Called by connections.

    def _lookup(self, service: str, method: str) -> Method | str:
        methods = self._services.get(service)
        if methods is None:
            return f"Service {service} is not served"
        return methods.get(method) or f"Method {service}/{method} is not served"

    def _run(self, request: ttrpc_pb2.Request, answer: Callable[[ttrpc_pb2.Response], bool]) -> None:
        task = asyncio.ensure_future(self._answer(request, answer))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _answer(self, request: ttrpc_pb2.Request, answer: Callable[[ttrpc_pb2.Response], bool]) -> None:
        response = ttrpc_pb2.Response()
        found = self._lookup(request.service, request.method)
        if isinstance(found, str):
            _fail(response, Code.UNIMPLEMENTED, found)
            answer(response)
            return
        try:
            message = found.request_type()
            message.ParseFromString(request.payload)
            timeout_s = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
            async with asyncio.timeout(timeout_s):
                result = await found.handler(message)
            response.status.code = Code.OK
            response.payload = result.SerializeToString()
        except DecodeError as error:
            _fail(response, Code.INVALID_ARGUMENT, f"Request of {request.method} cannot be parsed: {error}")
        except Exception as error:
            code, text = status_of(error)
            _log.debug("%s failed: %s", request.method, text)
            if code in (Code.UNKNOWN, Code.INTERNAL):
                _log.log(logging.DEBUG, "trace of %s", request.method, exc_info=error)
            _fail(response, code, text)
        heard = answer(response)
        if not heard and found.unheard is not None and response.status.code == Code.OK:
            _log.info("the client of %s left before its answer", request.method)
            await found.unheard(message)


class _Connection(asyncio.Protocol):
    """One client. Stream ids must be odd and rise; anything else is refused on its own stream."""

    def __init__(self, server: TtrpcServer) -> None:
        self._server = server
        self._decoder = framing.FrameDecoder()
        self._last_stream_id = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not _same_user(transport.get_extra_info("socket")):
            _log.warning("refused a connection from another user")
            transport.abort()
            return
        self._transport = transport
        self._server._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            self._frame(frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _frame(self, frame: framing.Frame) -> None:
        if frame.oversize:
            text = f"Message of {frame.oversize} bytes exceeds the maximum of {framing.MAX_PAYLOAD}"
            self._refuse(frame.stream_id, Code.RESOURCE_EXHAUSTED, text)
            self._last_stream_id = max(self._last_stream_id, frame.stream_id)
            return
        if frame.type != framing.TYPE_REQUEST:
            return  # data of streams is not served; unknown types are ignored by definition
        if frame.stream_id % 2 == 0 or frame.stream_id <= self._last_stream_id:
            text = f"Stream id {frame.stream_id} is even or was used before"
            self._refuse(frame.stream_id, Code.INVALID_ARGUMENT, text)
            return
        self._last_stream_id = frame.stream_id
        if frame.flags & (framing.FLAG_REMOTE_OPEN | framing.FLAG_REMOTE_CLOSED):
            self._refuse(frame.stream_id, Code.UNIMPLEMENTED, "Streaming methods are not served")
            return
        request = ttrpc_pb2.Request()
        try:
            request.ParseFromString(frame.payload)
        except DecodeError as error:
            self._refuse(frame.stream_id, Code.INVALID_ARGUMENT, f"Request cannot be parsed: {error}")
            return
        self._server._run(request, lambda response: self._send(frame.stream_id, response))

    def _refuse(self, stream_id: int, code: Code, text: str) -> None:
        response = ttrpc_pb2.Response()
        _fail(response, code, text)
        self._send(stream_id, response)

    def _send(self, stream_id: int, response: ttrpc_pb2.Response) -> bool:
        if self._transport is None:
            return False  # the client is gone; what was asked has been done
        payload = response.SerializeToString()
        if len(payload) > framing.MAX_PAYLOAD:
            too_large = ttrpc_pb2.Response()
            _fail(too_large, Code.RESOURCE_EXHAUSTED, f"Answer of {len(payload)} bytes is too large")
            payload = too_large.SerializeToString()
        self._transport.write(framing.encode(stream_id, framing.TYPE_RESPONSE, payload))
        return True


def _fail(response: ttrpc_pb2.Response, code: Code, text: str) -> None:
    response.status.code = code
    response.status.message = text


def _same_user(stream: socket.socket) -> bool:
    """Whether the peer of a unix socket has our user and group, as Go shims demand."""
    raw = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, gid = _UCRED.unpack(raw)
    return bool(uid == os.geteuid() and gid == os.getegid())
