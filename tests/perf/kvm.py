"""Groups that need KVM: run here where it is usable, and in the KVM lab (tests/lab) where it is not."""

import os
import sys
from collections.abc import Callable

from tests.framework.engine import EMULATED_VARIABLE
from tests.lab import EmulatorError, LabError
from tests.lab.host import Outcome, run_command
from tests.lab.settings import Command, LabSettings
from vmm.config import EngineName
from vmm.engines import probe
from vmm.log import Level, Log

from .report import OVER, say

_DEADLINE_S, _SILENCE_S = 7200.0, 1200.0


def run(group: str, measure: Callable[[int], list[str]], rounds: int) -> list[str]:
    """Run a group where there is a usable KVM; return what is surely over its budget."""
    verdict = probe.verdict(Log(Level.ERROR))
    if verdict.engine is EngineName.KVM:
        return measure(rounds)
    if EMULATED_VARIABLE in os.environ:  # this is the lab
        return [f"{group} (not measured: {verdict.reason})"]
    say(f"in the KVM lab, since there is no usable KVM here ({verdict.reason})")
    words = [sys.executable, "-m", "tests.perf", "--rounds", str(rounds), "--only", group]
    listener = _Listener()
    try:
        outcome = _in_the_lab(Command(words), listener)
    except LabError as error:
        say(str(error))
        return [f"{group} (not measured: the lab was lost)"]
    over = listener.over()
    if outcome.status != 0 and not over:
        return [f"{group} (not measured: status {outcome.status} in the lab)"]
    return over


def _in_the_lab(command: Command, listener: "_Listener") -> Outcome:
    settings = LabSettings(deadline_s=_DEADLINE_S, silence_s=_SILENCE_S)
    try:
        return run_command(command, settings, listener)
    except EmulatorError as error:
        say(f"once more, since the emulator lost the test host: {str(error).partition(chr(10))[0]}")
        listener.begin_anew()
        return run_command(command, settings, listener)


class _Listener:
    """Shows what the command in the test host prints, and keeps it."""

    def __init__(self) -> None:
        self._kept = b""

    def begin_anew(self) -> None:
        """Forget what was printed."""
        self._kept = b""

    def over(self) -> list[str]:
        """What the command has found to be over its budget."""
        last = self._kept.decode(errors="replace").strip().rpartition("\n")[2]
        return last.removeprefix(OVER).split(", ") if last.startswith(OVER) else []

    def output(self, data: bytes) -> None:
        """See `tests.lab.host.Listener`."""
        self._kept += data
        sys.stdout.buffer.write(data)
        sys.stdout.flush()

    def console(self, line: str) -> None:
        """See `tests.lab.host.Listener`. Shown by the host's error if it is lost."""

    def progress(self) -> None:
        """See `tests.lab.host.Listener`."""
