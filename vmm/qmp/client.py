"""QMP clients: `QmpClient` blocks, `AsyncQmpClient` runs on asyncio (imported only when it is used).

Both speak to strato-vmm and to QEMU. Call order: connect, any number of `execute`, close. Objects are
context managers. Errors: QmpCommandError for a refusal by the peer, QmpClosedError when the connection
ended, QmpProtocolError when the peer does not speak QMP, HostError when it cannot be reached.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

from ..errors import HostError, QmpClosedError, QmpProtocolError
from .protocol import MAX_REPLY_BYTES, Message, MessageReader, command, result_of, serialise

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    import asyncio
    from typing import Any, Self

DEFAULT_TIMEOUT_S = 10.0
MAX_QUEUED_EVENTS = 1024
_READ_BYTES = 65536


def _check_greeting(message: Message) -> Message:
    greeting = message.get("QMP")
    if not isinstance(greeting, dict):
        raise QmpProtocolError("Peer does not greet with QMP")
    return greeting


class QmpClient:
    """A blocking client. Events that arrive in between are kept in ``events``, oldest first."""

    def __init__(self, path: Path | str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect and negotiate. Raises HostError, QmpError."""
        self.events: deque[Message] = deque(maxlen=MAX_QUEUED_EVENTS)
        self._timeout_s = timeout_s
        self._reader = MessageReader(MAX_REPLY_BYTES)
        self._messages: deque[Message] = deque()
        self._next_id = 1
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            try:
                self._socket.connect(str(path))
            except OSError as error:
                raise HostError(f"QMP socket {path} cannot be reached") from error
            self.greeting = _check_greeting(self._receive(time.monotonic() + timeout_s))
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def execute(self, name: str, arguments: Message | None = None, *, timeout_s: float | None = None) -> Any:
        """Run a command and return its value. Raises QmpError, HostError on timeout."""
        request_id = self._next_id
        self._next_id += 1
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        try:
            self._socket.sendall(serialise(command(name, arguments, request_id)))
        except OSError as error:
            raise QmpClosedError(f"QMP connection ended before {name}") from error
        while True:
            message = self._receive(deadline)
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == request_id or "id" not in message:
                return result_of(message)

    def wait_event(self, name: str, *, timeout_s: float | None = None) -> Message:
        """Return the next event of that name, dropping others before it. Raises QmpError, HostError."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            message = self.events.popleft() if self.events else self._receive(deadline)
            if message.get("event") == name:
                return message

    def _receive(self, deadline: float) -> Message:
        while not self._messages:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise HostError("QMP peer does not answer in time")
            self._socket.settimeout(remaining)
            try:
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError as error:
                raise HostError("QMP peer does not answer in time") from error
            except OSError as error:
                raise QmpClosedError("QMP connection ended") from error
            if not data:
                raise QmpClosedError("QMP connection ended")
            self._messages.extend(self._reader.feed(data))
        return self._messages.popleft()


class AsyncQmpClient:
    """A client for asyncio. One task of its own reads; commands may be pipelined.

    ``on_event(name, data)`` is called from the event loop for each event; ``on_close()`` once, when the
    connection has ended for whatever reason.
    """

    def __init__(
        self,
        *,
        on_event: Callable[[str, Message], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.greeting: Message = {}
        self._on_event = on_event
        self._on_close = on_close
        self._reader = MessageReader(MAX_REPLY_BYTES)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 1
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def connect(self, path: Path | str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect and negotiate. Raises HostError, QmpError, TimeoutError."""
        import asyncio

        async with asyncio.timeout(timeout_s):
            try:
                self._stream = await asyncio.open_unix_connection(str(path))
            except OSError as error:
                raise HostError(f"QMP socket {path} cannot be reached") from error
            greeted: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._read(greeted))
            try:
                self.greeting = _check_greeting(await greeted)
                await self.execute("qmp_capabilities")
            except BaseException:
                await self.close()
                raise

    async def execute(self, name: str, arguments: Message | None = None) -> Any:
        """Run a command and return its value; bound it with ``asyncio.timeout``. Raises QmpError."""
        import asyncio

        if self._stream is None or self._failure is not None:
            raise QmpClosedError(f"QMP connection ended before {name}") from self._failure
        request_id = self._next_id
        self._next_id += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        try:
            self._stream[1].write(serialise(command(name, arguments, request_id)))
            return await future
        finally:
            self._pending.pop(request_id, None)

    async def close(self) -> None:
        """Close the connection; pending commands fail with QmpClosedError."""
        if self._stream is not None:
            self._stream[1].close()
        if self._task is not None:
            self._task.cancel()
            await _settled(self._task)

    async def _read(self, greeted: asyncio.Future[Message]) -> None:
        assert self._stream is not None
        try:
            while data := await self._stream[0].read(_READ_BYTES):
                for message in self._reader.feed(data):
                    if not greeted.done():
                        greeted.set_result(message)
                    else:
                        self._dispatch(message)
            self._failure = QmpClosedError("QMP connection ended")
        except (OSError, QmpProtocolError) as error:
            self._failure = QmpClosedError("QMP connection failed")
            self._failure.__cause__ = error
        finally:
            self._end(greeted)

    def _dispatch(self, message: Message) -> None:
        if "event" in message:
            if self._on_event is not None:
                self._on_event(str(message["event"]), message.get("data") or {})
            return
        future = self._pending.get(message.get("id", 0))
        if future is None or future.done():
            return  # its caller has given up
        try:
            future.set_result(result_of(message))
        except Exception as error:
            future.set_exception(error)

    def _end(self, greeted: asyncio.Future[Message]) -> None:
        failure = self._failure or QmpClosedError("QMP connection was closed")
        self._failure = failure
        assert self._stream is not None
        self._stream[1].close()
        for future in [greeted, *self._pending.values()]:
            if not future.done():
                future.set_exception(failure)
        if greeted.done() and not greeted.cancelled():
            greeted.exception()  # it may be that nobody waits for it any more
        if self._on_close is not None:
            self._on_close()


async def _settled(task: Awaitable[None]) -> None:
    import asyncio

    await asyncio.gather(task, return_exceptions=True)
