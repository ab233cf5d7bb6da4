"""Devices: one constructor for each kind, one class for what all have in common.

A device has threads of its own from its construction to `Device.close`; no call into Python ever comes from
them. The constructors raise OSError with the library's sentence.
"""

from __future__ import annotations

from . import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType
    from typing import Any

    from .events import EventRing

MAX_CONNECTIONS = 4096
"""Streams of a vsock device at a time, unless told otherwise."""


class Device:
    """A device that can be served to one front end at a time. A context manager."""

    def __init__(self, handle: Any) -> None:
        self._device = handle

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def serve(self, socket_fd: int) -> None:
        """Serve the vhost-user front end at the other end of a connected stream socket.

        The descriptor is duplicated: the caller may close its own at once. FRONT_END_GONE tells the end.
        """
        calls.device_serve(self._open(), socket_fd)

    def metrics(self) -> dict[str, int]:
        """Return the device's counters by name."""
        return calls.device_metrics(self._open())

    def close(self) -> None:
        """End the conversation, let what is in flight come to rest, end the threads. May be called twice."""
        device, self._device = self._device, None
        if device is not None:
            calls.device_destroy(device)

    def _open(self) -> Any:
        if self._device is None:
            raise ValueError("This device is closed")
        return self._device


def rng(events: EventRing, tag: int, name: str, *, rate: int, burst: int) -> Device:
    """Make an entropy device that gives at most ``rate`` bytes a second after ``burst`` bytes at once."""
    return Device(calls.rng_create(events.handle(), tag, name, rate, burst))


def vsock(
    events: EventRing,
    tag: int,
    name: str,
    *,
    guest_cid: int,
    path: str | PathLike[str],
    max_connections: int = MAX_CONNECTIONS,
) -> Device:
    """Make a socket device that listens at ``path`` at once."""
    return Device(calls.vsock_create(events.handle(), tag, name, guest_cid, path, max_connections))
