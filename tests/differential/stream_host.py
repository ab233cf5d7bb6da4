"""The host's end of the stream comparison (see guest/streams.c, which draws the same numbers).

`play` serves a listening unix socket until every stream has ended, and returns one line for each: what
arrived, whether it was what the other end must have sent, and how the stream ended.
"""

import selectors
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

_MASK = (1 << 64) - 1
PIECE = 60_000
READ = 1 << 16


class Ending(IntEnum):
    """How a stream ends; the first three occur in both modes."""

    COUNTED = 0
    GUEST_BREAKS = 1
    HOST_BREAKS = 2
    BOTH_CLOSE = 3
    GUEST_HALF = 4
    HOST_HALF = 5


COUNTED_ENDINGS, ALL_ENDINGS = 3, 6


class _Draw:
    """splitmix64, as in guest/streams.c."""

    def __init__(self, state: int) -> None:
        self._state = state & _MASK

    def __call__(self, limit: int) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        value = self._state
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
        return ((value ^ value >> 31) >> 11) % limit


def content(stream: int, start: int, size: int) -> bytes:
    """What the guest sends on a stream from a place on."""
    return bytes((at * 31 + (at >> 8) * 7 + stream * 131) & 0xFF for at in range(start, start + size))


@dataclass
class _Stream:
    connection: socket.socket
    number: int
    ending: Ending
    to_receive: int
    to_send: int
    received: bytearray
    sent: int = 0
    seen_end: bool = False
    line: str = ""

    @property
    def limit(self) -> int:
        """Up to where this side may send now."""
        if self.ending is Ending.HOST_BREAKS:
            return self.to_send // 2
        return 0 if self.ending is Ending.GUEST_HALF and not self.seen_end else self.to_send

    @property
    def events(self) -> int:
        """What is to be waited for."""
        out = selectors.EVENT_WRITE if self.sent < self.limit else 0
        return out | (0 if self.seen_end else selectors.EVENT_READ)

    def pull(self) -> None:
        """Reads once."""
        try:
            data = self.connection.recv(READ)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self.received += data
        self.seen_end = not data

    def push(self) -> None:
        """Sends once."""
        # What is sent need not differ from place to place: the guest prints a digest of it.
        data = bytes([self.number & 0xFF]) * min(PIECE, self.limit - self.sent)
        try:
            self.sent += self.connection.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.sent, self.seen_end = self.to_send, True
        if self.sent == self.to_send and self.ending in (
            Ending.BOTH_CLOSE,
            Ending.GUEST_HALF,
            Ending.HOST_HALF,
        ):
            _shut(self.connection)

    @property
    def is_over(self) -> bool:
        """Whether this side has nothing more to do with the stream."""
        match self.ending:
            case Ending.COUNTED:
                return len(self.received) >= self.to_receive and self.sent == self.to_send
            case Ending.GUEST_BREAKS:
                return self.seen_end
            case Ending.HOST_BREAKS:
                return self.seen_end or self.sent >= self.limit
        return self.seen_end and self.sent == self.to_send

    def finish(self) -> None:
        """Closes the stream and says what came of it."""
        self.connection.close()
        right = self.received == content(self.number, 0, len(self.received))
        if self.ending in (Ending.GUEST_BREAKS, Ending.HOST_BREAKS):
            # It may have ended anywhere, but never with anything else than what was sent.
            self.line = "broken, beginning right" if right else "broken, wrong data"
        else:
            self.line = f"{self.ending.name} received {len(self.received)} of {self.to_receive} right {right}"


def play(
    listener: socket.socket, seed: int, count: int, endings: int, *, timeout_s: float = 90.0
) -> list[str]:
    """Accepts `count` streams and plays them to their end. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    streams: dict[int, _Stream] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ, None)
        open_streams = count
        while open_streams:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                waiting = [f"{it.number} {it.ending.name}" for it in streams.values() if not it.line]
                raise TimeoutError(f"Of {len(streams)} streams are still open: {waiting}")
            for key, events in ready:
                if key.data is None:
                    stream = _accept(listener, seed, endings)
                    streams[stream.number] = stream
                    selector.register(stream.connection, stream.events, stream)
                    continue
                stream = key.data
                if events & selectors.EVENT_READ:
                    stream.pull()
                if events & selectors.EVENT_WRITE and stream.sent < stream.limit:
                    stream.push()
                if stream.is_over:
                    selector.unregister(stream.connection)
                    stream.finish()
                    open_streams -= 1
                elif stream.events:
                    selector.modify(stream.connection, stream.events, stream)
    return [f"{number} {streams[number].line}" for number in sorted(streams)]


def _accept(listener: socket.socket, seed: int, endings: int) -> _Stream:
    connection, _ = listener.accept()
    connection.settimeout(20)
    name = connection.recv(4, socket.MSG_WAITALL)
    (number,) = struct.unpack("=I", name)
    connection.setblocking(False)
    draw = _Draw(seed * 1000003 + number)
    ending = Ending(draw(endings))
    sizes = []
    for _ in range(2):
        value, large = draw(1 << 62), draw(4) == 0
        sizes.append(2 + value % (300000 if large else 20000))
    return _Stream(connection, number, ending, sizes[0], sizes[1], bytearray())


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other end has gone altogether
