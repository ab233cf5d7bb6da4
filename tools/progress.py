"""Progress lines and commands of the developer tools.

Every tool says what it does before it does it, with the seconds since the tool began, so that a
person who waits for a kernel build sees what is going on. Commands run here write to a log file;
their last lines are shown when they fail, with the command in a form that can be pasted.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import CommandError

# A command that is still running is mentioned again after this many seconds.
_HEARTBEAT_S = 20.0
_SHOWN_LINES = 30

_BEGIN = time.monotonic()


def say(text: str) -> None:
    """Print one progress line with the seconds since this process began."""
    sys.stdout.write(f"[{time.monotonic() - _BEGIN:7.1f} s] {text}\n")
    sys.stdout.flush()


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a piece of work, and its duration when it ended well."""
    say(f"{text} ...")
    begin = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - begin:.1f} s")


def run(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end with its output in `log` (appended; folders are made).

    `env` is added to this process's environment. Raises CommandError with the last lines of the
    output when the command ends with anything but 0 or cannot be started.
    """
    command = [str(part) for part in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A group of its own, so that make's or cargo's children end with it.
                process_group=0,
            )
        except OSError as error:
            raise CommandError(f"Cannot start {command[0]!r}: {error.strerror}") from error
        try:
            status = _wait(process, Path(command[0]).name, log)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status != 0:
        raise CommandError(
            f"Command failed with status {status}; its whole output is in {log}\n"
            f"  (cd {cwd or Path.cwd()} && {shlex.join(command)})\n" + tail(log, _SHOWN_LINES, start)
        )


def _wait(process: subprocess.Popen[bytes], name: str, log: Path) -> int:
    begin = time.monotonic()
    while True:
        try:
            return process.wait(_HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            last = tail(log, 1).strip()[-100:]
            say(f"  {name} has run for {time.monotonic() - begin:.0f} s; last line: {last}")


def capture(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it printed on standard output.

    Raises CommandError with its standard error when it fails or cannot be started.
    """
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise CommandError(f"Cannot start {command[0]!r}: {error.strerror}") from error
    if done.returncode != 0:
        raise CommandError(
            f"Command failed with status {done.returncode}: {shlex.join(command)}\n{done.stderr.strip()}"
        )
    return done.stdout


def tail(path: Path, count: int, offset: int = 0) -> str:
    """The last `count` lines of a file, looking at nothing before byte `offset`."""
    with path.open("rb") as file:
        file.seek(offset)
        lines = deque(file, maxlen=count)
    return b"".join(lines).decode(errors="replace")
