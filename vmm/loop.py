"""The event loop of strato-vmm: one thread, `selectors`, timers and signals.

Owned by ``vmm.__main__``; callbacks run to completion and must not block. A callback that raises ends
the loop: `run` lets the exception out, since only a bug of ours can cause it.
"""

import heapq
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType

Callback = Callable[[], None]


class Timer:
    """A scheduled call; `cancel` makes it void."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callback) -> None:
        self.deadline = deadline
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Prevent the call; harmless afterwards."""
        self.callback = None

    def __lt__(self, other: "Timer") -> bool:
        return self.deadline < other.deadline


class EventLoop:
    """Readiness callbacks, timers and signal callbacks, until `stop`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._signals: dict[int, Callback] = {}
        self._stopped = False
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.add_reader(self._wakeup_read, self._on_wakeup)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

    def close(self) -> None:
        """Give back the loop's own descriptors and signal handlers."""
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call when the descriptor can be read (or has ended). Raises PermissionError for regular files."""
        self._readers[fd] = callback
        try:
            self._update(fd)
        except PermissionError:
            del self._readers[fd]
            raise

    def remove_reader(self, fd: int) -> None:
        """Undo `add_reader`; harmless when there is none."""
        if self._readers.pop(fd, None) is not None:
            self._update(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call when the descriptor can be written."""
        self._writers[fd] = callback
        self._update(fd)

    def remove_writer(self, fd: int) -> None:
        """Undo `add_writer`; harmless when there is none."""
        if self._writers.pop(fd, None) is not None:
            self._update(fd)

    def on_signals(self, numbers: Iterable[int], callback: Callback) -> None:
        """Call from the loop (not from a signal handler) after any of these signals."""
        for number in numbers:
            self._signals[number] = callback
            signal.signal(number, _ignore)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Call once, after that many seconds."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        """Make `run` return after the present callback."""
        self._stopped = True

    def run(self) -> None:
        """Serve callbacks until `stop`."""
        while not self._stopped:
            for key, events in self._selector.select(self._timeout()):
                # A callback may have removed a later one of the same round: look up at the last moment.
                if events & selectors.EVENT_READ and (reader := self._readers.get(key.fd)):
                    reader()
                if events & selectors.EVENT_WRITE and (writer := self._writers.get(key.fd)):
                    writer()
            self._run_timers()

    def _update(self, fd: int) -> None:
        events = (selectors.EVENT_READ if fd in self._readers else 0) | (
            selectors.EVENT_WRITE if fd in self._writers else 0
        )
        known = fd in self._selector.get_map()
        if not events:
            self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events)
        else:
            self._selector.register(fd, events)

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0].deadline - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].deadline <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()

    def _on_wakeup(self) -> None:
        try:
            arrived = set(os.read(self._wakeup_read, 4096))
        except BlockingIOError:
            return
        # Two signals may share one callback; it runs once for both.
        for callback in {self._signals[number] for number in arrived if number in self._signals}:
            callback()


def _ignore(number: int, frame: FrameType | None) -> None:
    # The C-level handler has already written the number to the wakeup pipe.
    return
