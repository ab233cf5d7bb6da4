"""A ttrpc client on an asyncio loop: unary calls over one connected stream socket.

Two users: agent_proto/client.py (the guest, which is hostile) and events.py (containerd). Anything the
peer sends that the protocol forbids ends the connection with a GuestProtocolError for every call.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from ..errors import DeadlineError, GuestProtocolError, RemoteError, SandboxError
from ..protos.generated import ttrpc_pb2
from . import framing

ResponseT = TypeVar("ResponseT", bound=Message)


class TtrpcClient(asyncio.Protocol):
    """One connection. Made by `connect`; `closed` is a future that ends with the connection."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._decoder = framing.FrameDecoder()
        self._next_stream_id = 1
        self._waiting: dict[int, asyncio.Future[ttrpc_pb2.Response]] = {}
        # Calls that gave up; their late answers are expected and dropped.
        self._abandoned: set[int] = set()
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, stream: socket.socket, *, peer: str) -> TtrpcClient:
        """Take over the connected non-blocking *stream*; *peer* names the other end in errors."""
        _, client = await asyncio.get_running_loop().create_connection(lambda: cls(peer), sock=stream)
        return client

    async def call(
        self,
        method: tuple[str, str],
        request: Message,
        response_type: type[ResponseT],
        *,
        timeout_s: float,
        metadata: dict[str, str] | None = None,
    ) -> ResponseT:
        """Call *method* = (service, name) and return its answer.

        Raises RemoteError for an error status, DeadlineError after *timeout_s*, SandboxError when the
        connection is gone, GuestProtocolError when the peer broke the protocol.
        """
        if self._transport is None:
            raise self._gone()
        service, name = method
        envelope = ttrpc_pb2.Request(
            service=service,
            method=name,
            payload=request.SerializeToString(),
            timeout_nano=int(timeout_s * 1e9),
        )
        for key, value in (metadata or {}).items():
            envelope.metadata.add(key=key, value=value)
        payload = envelope.SerializeToString()
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        future: asyncio.Future[ttrpc_pb2.Response] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = future
        self._transport.write(framing.encode(stream_id, framing.TYPE_REQUEST, payload))
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError as error:
            raise DeadlineError(f"{self._peer} did not answer {name} within {timeout_s:g} s") from error
        finally:
            self._waiting.pop(stream_id, None)
            if future.cancelled():
                self._abandoned.add(stream_id)
        if answer.status.code:
            raise RemoteError(answer.status.code, answer.status.message)
        response = response_type()
        try:
            response.ParseFromString(answer.payload)
        except DecodeError as error:
            broken = GuestProtocolError(f"{self._peer} answered {name} with bytes that are no {name} answer")
            self._fail(broken)
            raise broken from error
        return response

    def close(self) -> None:
        """Close the connection; calls that wait fail with SandboxError. May be called twice."""
        self._fail(SandboxError(f"Connection to {self._peer} was closed"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(SandboxError(f"Connection to {self._peer} was lost"))

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            try:
                self._frame(frame)
            except GuestProtocolError as error:
                self._fail(error)
                return

    def _frame(self, frame: framing.Frame) -> None:
        if frame.oversize:
            raise GuestProtocolError(f"{self._peer} sent a frame of {frame.oversize} bytes")
        if frame.type != framing.TYPE_RESPONSE:
            raise GuestProtocolError(f"{self._peer} sent a frame of type {frame.type}, not an answer")
        if frame.stream_id in self._abandoned:
            self._abandoned.discard(frame.stream_id)
            return
        future = self._waiting.get(frame.stream_id)
        if future is None or future.done():
            raise GuestProtocolError(f"{self._peer} answered stream {frame.stream_id}, which asked nothing")
        response = ttrpc_pb2.Response()
        try:
            response.ParseFromString(frame.payload)
        except DecodeError as error:
            raise GuestProtocolError(f"{self._peer} sent an answer that cannot be parsed") from error
        future.set_result(response)

    def _gone(self) -> Exception:
        return self._error or SandboxError(f"No connection to {self._peer}")

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._error)
        if not self.closed.done():
            self.closed.set_result(None)

    @property
    def error(self) -> Exception | None:
        """Why the connection ended; None while it lives."""
        return self._error
