"""`python -m tests.lab [options] -- COMMAND…`: runs a command in a test host that has a working /dev/kvm.

The command sees this machine's files and may change all of them: nothing of that survives, but what it puts
into the folder STRATO_LAB_RESULTS (see --results). It runs in this folder and with this environment, as root,
with no network but lo. The exit status is the command's, or 125 when the test host was lost or cannot start.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import LabError
from .host import LabHost
from .settings import Command, LabSettings

LOST = 125


class Terminal:
    """Passes the command's output on, and the kernel's to standard error."""

    def output(self, data: bytes) -> None:
        """See `Listener`."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def console(self, line: str) -> None:
        """See `Listener`."""
        if line:
            _say(f"console: {line}")

    def progress(self) -> None:
        """See `Listener`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit status."""
    options = _parser().parse_args(arguments)
    # SIGINT, too: whoever is started in the background of a script inherits that it is ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    settings = replace(
        LabSettings(),
        cpus=options.cpus,
        memory_mib=options.memory,
        deadline_s=options.deadline,
        silence_s=options.silence,
    )
    try:
        with LabHost(Command(options.command), settings) as host:
            try:
                outcome = host.wait(Terminal())
            finally:
                if options.results is not None:
                    shutil.copytree(host.results, options.results, dirs_exist_ok=True)
    except LabError as error:
        _say(str(error))
        return LOST
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    _say(str(outcome))
    return outcome.status


def _parser() -> argparse.ArgumentParser:
    defaults = LabSettings()
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpus", type=int, default=defaults.cpus, help="vCPUs (default %(default)s)")
    parser.add_argument(
        "--memory", type=int, default=defaults.memory_mib, metavar="MIB", help="default %(default)s"
    )
    parser.add_argument("--deadline", type=float, default=defaults.deadline_s, metavar="S", help="for all")
    parser.add_argument(
        "--silence", type=float, default=defaults.silence_s, metavar="S", help="without output"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="copy STRATO_LAB_RESULTS here in the end")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
