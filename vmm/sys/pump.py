"""The byte pump: moves bytes between pairs of descriptors in a native thread.

The shim has one pump for all stdio streams of its containers; ``strato`` has one for a console. Bytes never
pass through Python. Events are read when `Pump.fileno` is readable (``loop.add_reader(pump.fileno(), ...)``).

A stream lives from `Pump.add` to `Pump.remove`, also after it has ended, so that `Pump.stats` can be asked.
The pump duplicates both descriptors: the caller may close its own at once. A reader of the destination sees
the end only when every copy is closed. Where sockets have MSG_DONTWAIT and pipes RWF_NOWAIT the caller's open
file keeps its flags; ttys get O_NONBLOCK until the stream ends.

After a fork the child has no pump: every method raises PumpOwnerError there, and closing does nothing.
"""

from __future__ import annotations

from . import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final

_KEEP_ON_DST_ERROR = 1
_CLOSE_DST = 2


class PumpEventKind:
    """What has happened to a stream. Plain integers: enum would double the time that the import takes."""

    SRC_EOF: Final = 1
    """The source ended (end of file, hang-up, EIO of a pty) and everything read has been written."""
    DONE: Final = 2
    """The limit has been reached."""
    DST_ERROR: Final = 3
    """The destination failed; with ``keep_on_dst_error`` the source is read on, to nowhere, and counted."""
    SRC_ERROR: Final = 4
    """The source failed."""


class PumpState:
    """What a stream is doing."""

    RUNNING: Final = 0
    DRAINING: Final = 1
    """Reading to nowhere, after DST_ERROR."""
    FINISHED: Final = 2


_KIND_NAMES = {1: "SRC_EOF", 2: "DONE", 3: "DST_ERROR", 4: "SRC_ERROR"}


class PumpEvent:
    """One event. A stream has at most one DST_ERROR and one final event."""

    __slots__ = ("bytes", "errno", "handle", "kind", "tag")

    def __init__(self, tag: int, handle: int, kind: int, bytes: int, errno: int) -> None:  # noqa: A002
        self.tag = tag
        self.handle = handle
        self.kind = kind
        self.bytes = bytes
        """Bytes moved until then."""
        self.errno = errno
        """Positive errno of the two errors, otherwise 0."""

    def __repr__(self) -> str:
        kind = _KIND_NAMES.get(self.kind, self.kind)
        return (
            f"PumpEvent(tag={self.tag}, handle={self.handle}, kind={kind}, "
            f"bytes={self.bytes}, errno={self.errno})"
        )


class PumpStats:
    """How far a stream has come."""

    __slots__ = ("bytes_moved", "bytes_read", "state")

    def __init__(self, bytes_moved: int, bytes_read: int, state: int) -> None:
        self.bytes_moved = bytes_moved
        """Bytes written to the destination, or thrown away while draining."""
        self.bytes_read = bytes_read
        self.state = state

    def __repr__(self) -> str:
        return f"PumpStats(bytes_moved={self.bytes_moved}, bytes_read={self.bytes_read}, state={self.state})"


class Pump:
    """One native thread that moves bytes. A context manager; thread-safe; raises OSError."""

    def __init__(self) -> None:
        self._pump: Any = None
        self._pump = calls.pump_create()
        self._fd = calls.pump_event_fd(self._pump)

    def __enter__(self) -> Pump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and close every stream's descriptors. May be called twice."""
        pump, self._pump = self._pump, None
        if pump is not None:
            calls.pump_destroy(pump)

    def fileno(self) -> int:
        """Return the eventfd that is readable while events wait."""
        self._open()
        return self._fd

    def events(self) -> list[PumpEvent]:
        """Take all waiting events, oldest first. Never blocks."""
        return [PumpEvent(*event) for event in calls.pump_events(self._open())]

    def add(
        self,
        src_fd: int,
        dst_fd: int,
        *,
        tag: int,
        limit: int | None = None,
        keep_on_dst_error: bool = False,
        close_dst: bool = True,
    ) -> int:
        """Start to move bytes and return the stream's handle.

        ``tag`` (0 to 2^64-1) comes back in events. After ``limit`` bytes the stream is DONE and what follows
        stays in the source. ``close_dst`` closes the pump's copy of the destination when the stream ends,
        before the event is sent; otherwise it is closed by `remove`.
        """
        flags = (_KEEP_ON_DST_ERROR if keep_on_dst_error else 0) | (_CLOSE_DST if close_dst else 0)
        total = calls.NO_LIMIT if limit is None else limit
        return calls.pump_add(self._open(), (src_fd, dst_fd), tag, total, flags)

    def set_limit(self, handle: int, total: int) -> None:
        """Finish after exactly ``total`` bytes in all; at once if they have passed. Nothing after the end."""
        calls.pump_set_limit(self._open(), handle, total)

    def stats(self, handle: int) -> PumpStats:
        """Return how far the stream has come."""
        return PumpStats(*calls.pump_stats(self._open(), handle))

    def remove(self, handle: int) -> None:
        """Stop the stream, close its descriptors and drop its events: none comes afterwards."""
        calls.pump_remove(self._open(), handle)

    def _open(self) -> Any:
        if self._pump is None:
            raise ValueError("This pump is closed")
        return self._pump
