"""Whether a test host still gets on: decisions only, the clock and the events are the caller's.

Four limits, because no single sign proves progress. A vCPU that the emulator lost shows in the beats, which
every vCPU has to give by starting a program and printing; a command that hangs on a healthy host shows in its
silence; one that talks for ever, in the deadline; a host that never comes up, in the time for the boot.
"""

from collections.abc import Iterator

from .settings import LabSettings


class Frozen(str):
    """A verdict: a vCPU has stopped."""


class Watchdog:
    """The state of one test host's limits. Times are seconds of any clock that never goes back."""

    def __init__(self, settings: LabSettings, now: float) -> None:
        self._settings = settings
        self._begin = now
        self._beats: dict[int, float] | None = None
        self._output = now

    def up(self, now: float) -> None:
        """The command is about to run."""
        self._beats = dict.fromkeys(range(self._settings.cpus), now)
        self._output = now

    def beat(self, cpu: int, now: float) -> None:
        """A vCPU gave a sign of life."""
        if self._beats is not None and cpu in self._beats:
            self._beats[cpu] = now

    def output(self, now: float) -> None:
        """The command printed something."""
        self._output = now

    def verdict(self, now: float) -> str | None:
        """Why the test host has to be given up, or None."""
        return next((why for deadline, why in self._limits() if now >= deadline), None)

    def next_look(self) -> float:
        """When `verdict` may turn, if nothing happens until then."""
        return min(deadline for deadline, _ in self._limits())

    def _limits(self) -> Iterator[tuple[float, str]]:
        limits = self._settings
        yield self._begin + limits.deadline_s, f"had not ended after {limits.deadline_s:g} s"
        if self._beats is None:
            yield self._begin + limits.boot_s, f"was not up after {limits.boot_s:g} s"
            return
        for cpu, last in self._beats.items():
            why = f"froze: no sign of life of vCPU {cpu} for {limits.beat_s:g} s"
            yield last + limits.beat_s, Frozen(why)
        yield self._output + limits.silence_s, f"made no progress: no output for {limits.silence_s:g} s"
