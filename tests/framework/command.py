"""Running programs with deadlines: every wait in the tests ends, with what the program had said so far.

`run` is for programs that end by themselves, `Background` for those that a test talks to or ends. Both keep
output as bytes.
"""

import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .patience import deadline_after, patient

DEFAULT_TIMEOUT_S = 40.0


@dataclass(frozen=True)
class Result:
    """How a program ended: its status (negative: the signal that killed it) and all it wrote."""

    command: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def error_text(self) -> str:
        """Standard error as text without the last newline."""
        return self.stderr.decode(errors="replace").rstrip("\n")

    def check(self, status: int = 0) -> Self:
        """Returns itself; raises CommandError when the program ended otherwise."""
        if self.status != status:
            raise CommandError(self, f"ended with {self.status} instead of {status}")
        return self


class CommandError(AssertionError):
    """A program did not end as the test needs; the text quotes the command so that it can be pasted."""

    def __init__(self, result: Result, what: str) -> None:
        super().__init__(
            f"`{shlex.join(result.command)}` {what} after {result.seconds:.1f} s\n"
            f"stdout: {_clip(result.stdout)}\nstderr: {_clip(result.stderr)}"
        )
        self.result = result


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Result:
    """Runs a program to its end. Raises CommandError when the time is up; any exit status is returned."""
    words = tuple(str(word) for word in command)
    begin = time.monotonic()
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env) if env is not None else None,
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=patient(timeout_s))
        except subprocess.TimeoutExpired as error:
            process.kill()
            stdout, stderr = process.communicate()
            result = Result(words, -signal.SIGKILL, stdout, stderr, time.monotonic() - begin)
            raise CommandError(result, "had not ended") from error
    return Result(words, process.returncode, stdout, stderr, time.monotonic() - begin)


class Background:
    """A program that runs beside the test. Leaving the context kills it."""

    def __init__(self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> None:
        self.command = tuple(str(word) for word in command)
        self._begin = time.monotonic()
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
        )
        self.stdout = b""
        self.stderr = b""
        self._selector = selectors.DefaultSelector()
        for name in ("stdout", "stderr"):
            pipe = getattr(self._process, name)
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, name)

    @property
    def pid(self) -> int:
        """Pid of the program."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the program if it runs, and lets go of its pipes."""
        self._process.kill()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def write(self, data: bytes) -> None:
        """Writes to standard input; blocks while the pipe is full."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def close_stdin(self) -> None:
        """Ends standard input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def send_signal(self, number: int) -> None:
        """Sends a signal to the program alone."""
        self._process.send_signal(number)

    def expect(self, text: bytes, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes:
        """Waits until `text` was printed; returns all output so far. Raises CommandError otherwise."""
        self._pump(lambda: text in self.stdout, timeout_s, f"did not print {text!r}")
        return self.stdout

    def wait(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Result:
        """Reads to the end of output and waits for the end. Raises CommandError when the time is up."""
        deadline = deadline_after(timeout_s)
        self._pump(lambda: not self._selector.get_map(), timeout_s, "kept its output open")
        try:
            self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise CommandError(self._result(), "had not ended") from error
        return self._result()

    def _pump(self, done: Callable[[], bool], timeout_s: float, failure: str) -> None:
        deadline = deadline_after(timeout_s)
        while not done():
            if not self._selector.get_map() or time.monotonic() > deadline:
                raise CommandError(self._result(), failure)
            for key, _ in self._selector.select(max(0.0, deadline - time.monotonic())):
                data = os.read(key.fd, 1 << 16)
                if data:
                    setattr(self, key.data, getattr(self, key.data) + data)
                else:
                    self._selector.unregister(key.fileobj)

    def _result(self) -> Result:
        status = self._process.poll()
        return Result(
            self.command,
            0 if status is None else status,
            self.stdout,
            self.stderr,
            time.monotonic() - self._begin,
        )


def eventually(condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    """Waits for a condition of the host that has no event to wait on. Raises AssertionError naming `what`."""
    deadline = deadline_after(timeout_s)
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patient(timeout_s):g} s")
        time.sleep(0.02)  # /proc and daemon answers have no descriptor to poll


def _clip(data: bytes, limit: int = 4000) -> str:
    text = data.decode(errors="replace")
    return text if len(text) <= limit else f"…{text[-limit:]}"
