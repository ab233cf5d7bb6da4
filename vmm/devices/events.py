"""What devices and machines have to say, on its way to strato-vmm's event loop."""

from __future__ import annotations

from . import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final


class DeviceEventKind:
    """What happened to a device, or from 16 on to a machine.

    Plain integers: enum would double the time that the import takes.
    """

    NEEDS_RESET: Final = 1
    """The driver broke the protocol; the device stands still until it is reset."""
    BACKEND_ERROR: Final = 2
    """The host's side of the device failed; the guest has its answer."""
    CONFIG_CHANGED: Final = 3
    """The device changed its configuration space."""
    REFUSED: Final = 4
    """A request of the front end was refused."""
    FRONT_END_GONE: Final = 5
    """The front end has gone; another may be served."""
    LOST: Final = 6
    """The device's thread could not go on."""
    PANICKED: Final = 7
    """A bug in the device or the machine; it is lost."""
    BALLOON_CHANGED: Final = 8
    """The guest has given up another amount of memory."""
    GUEST_RESET: Final = 16
    """The guest asked for a reset.

    This is an end, as are the next, the triple fault and the failed vCPU: all vCPUs are parked, and until the
    machine is reset there is only one end.
    """
    GUEST_SHUTDOWN: Final = 17
    """The guest has switched itself off."""
    GUEST_PANICKED: Final = 18
    """The guest's kernel has panicked, and decides itself what it does then."""
    TRIPLE_FAULT: Final = 19
    """How x86 kernels without firmware reset, and how they die."""
    VCPU_FAILED: Final = 20
    """A vCPU cannot go on; the text has KVM's numbers."""
    CRASH_LOADED: Final = 21
    """The guest's kernel has panicked, and its crash kernel takes over."""


KIND_NAMES = {
    1: "NEEDS_RESET",
    2: "BACKEND_ERROR",
    3: "CONFIG_CHANGED",
    4: "REFUSED",
    5: "FRONT_END_GONE",
    6: "LOST",
    7: "PANICKED",
    8: "BALLOON_CHANGED",
    16: "GUEST_RESET",
    17: "GUEST_SHUTDOWN",
    18: "GUEST_PANICKED",
    19: "TRIPLE_FAULT",
    20: "VCPU_FAILED",
    21: "CRASH_LOADED",
}


class DeviceEvent:
    """One event: ``count`` is how often it happened until it was taken, ``text`` the words of the first."""

    __slots__ = ("count", "kind", "tag", "text")

    def __init__(self, tag: int, kind: int, count: int, text: str) -> None:
        self.tag = tag
        self.kind = kind
        self.count = count
        self.text = text

    def __repr__(self) -> str:
        kind = KIND_NAMES.get(self.kind, self.kind)
        return f"DeviceEvent(tag={self.tag}, kind={kind}, count={self.count}, text={self.text!r})"


class EventRing:
    """The events of all devices that are made with it. A context manager; raises OSError."""

    def __init__(self) -> None:
        self._events: Any = None
        self._events = calls.events_create()
        self._fd = calls.events_fd(self._events)

    def __enter__(self) -> EventRing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the ring back. Its devices go on and are heard no more. May be called twice."""
        events, self._events = self._events, None
        if events is not None:
            calls.events_destroy(events)

    def fileno(self) -> int:
        """Return the eventfd that is readable while events wait."""
        self.handle()
        return self._fd

    def events(self) -> list[DeviceEvent]:
        """Take all waiting events, oldest first. Never blocks."""
        return [DeviceEvent(*event) for event in calls.events_next(self.handle())]

    def handle(self) -> Any:
        """Return the library's handle; for `vmm.devices.device` only."""
        if self._events is None:
            raise ValueError("This event ring is closed")
        return self._events
