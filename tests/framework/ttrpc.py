"""ttrpc as the tests speak it: a blocking client with overlapping calls, and a sink for containerd's events.

Written on its own, not on shim.ttrpc: two readings of the protocol that agree are worth more than one. Only
the messages are shared.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import Message

from shim.protos.generated import events_pb2, events_service_pb2, ttrpc_pb2

from .patience import deadline_after, patient

# ttrpc PROTOCOL.md: length, stream id, type, flags; big endian.
HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE = 1, 2

ResponseT = TypeVar("ResponseT", bound=Message)


class RpcError(Exception):
    """The peer answered with an error; `code` is the gRPC code."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method} failed with code {code}: {message}")
        self.code = code
        self.message = message


class Call:
    """A call under way. `result` may be asked once."""

    def __init__(self, client: "TtrpcClient", stream: int, method: str) -> None:
        self._client = client
        self._stream = stream
        self._method = method

    def result(self, into: type[ResponseT], *, timeout_s: float = 40.0) -> ResponseT:
        """The answer. Raises RpcError for an error, TimeoutError when none came."""
        response = self._client.receive(self._stream, deadline_after(timeout_s))
        if response.HasField("status") and response.status.code:
            raise RpcError(self._method, response.status.code, response.status.message)
        answer = into()
        answer.ParseFromString(response.payload)
        return answer


class TtrpcClient:
    """One connection to a unix socket. For one thread."""

    def __init__(self, path: str, service: str, namespace: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._service = service
        self._namespace = namespace
        self._next = 1
        self._answers: dict[int, ttrpc_pb2.Response] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def start(self, method: str, request: Message) -> Call:
        """Sends a request and returns without its answer."""
        envelope = ttrpc_pb2.Request(
            service=self._service, method=method, payload=request.SerializeToString()
        )
        envelope.metadata.add(key="containerd-namespace-ttrpc", value=self._namespace)
        stream, self._next = self._next, self._next + 2
        self.send_raw(envelope.SerializeToString(), stream)
        return Call(self, stream, method)

    def call(
        self, method: str, request: Message, into: type[ResponseT], *, timeout_s: float = 40.0
    ) -> ResponseT:
        """Sends a request and waits for its answer."""
        return self.start(method, request).result(into, timeout_s=timeout_s)

    def send_raw(self, payload: bytes, stream: int, kind: int = REQUEST, flags: int = 0) -> None:
        """Sends one frame of the caller's making."""
        self._socket.sendall(HEADER.pack(len(payload), stream, kind, flags) + payload)

    def receive(self, stream: int, deadline: float) -> ttrpc_pb2.Response:
        """The response on a stream; those of other streams are kept. Raises TimeoutError, ConnectionError."""
        while stream not in self._answers:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            number, payload = read_frame(self._socket)
            self._answers[number] = ttrpc_pb2.Response.FromString(payload)
        return self._answers.pop(stream)


def read_frame(stream: socket.socket) -> tuple[int, bytes]:
    """Stream id and payload of the next frame. Raises ConnectionError when the peer has gone."""
    length, number, _, _ = HEADER.unpack(_read_exactly(stream, HEADER.size))
    return number, _read_exactly(stream, length)


class EventSink:
    """containerd's side of event forwarding: a ttrpc server that keeps every event in order of arrival."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[tuple[str, Message]] = []
        self._arrived = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for connection in (self._listener, *self._open):
            connection.close()
        self.path.unlink(missing_ok=True)

    @property
    def topics(self) -> list[str]:
        """Topics so far, in order."""
        with self._arrived:
            return [topic for topic, _ in self._events]

    def wait_for(self, done: Callable[[list[tuple[str, Message]]], bool], *, timeout_s: float = 30.0) -> None:
        """Waits until a condition on the events holds. Raises TimeoutError with the topics."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: done(self._events), patient(timeout_s)):
                raise TimeoutError(f"Events so far: {[topic for topic, _ in self._events]}")

    def of_topic(self, topic: str) -> list[Message]:
        """The events of one topic, in order."""
        with self._arrived:
            return [event for name, event in self._events if name == topic]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                number, payload = read_frame(connection)
                request = ttrpc_pb2.Request.FromString(payload)
                forward = events_service_pb2.ForwardRequest.FromString(request.payload)
                self._keep(forward.envelope.topic, forward.envelope.event)
                answer = ttrpc_pb2.Response().SerializeToString()
                connection.sendall(HEADER.pack(len(answer), number, RESPONSE, 0) + answer)

    def _keep(self, topic: str, event: Message) -> None:
        name = str(getattr(event, "type_url", "")).rpartition("/")[2].rpartition(".")[2]
        decoded = getattr(events_pb2, name)()
        decoded.ParseFromString(getattr(event, "value", b""))
        with self._arrived:
            self._events.append((topic, decoded))
            self._arrived.notify_all()


def _read_exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise ConnectionError(f"The peer closed the connection {size - len(data)} bytes too early")
        data += more
    return data
