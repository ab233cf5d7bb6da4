"""A pseudo-terminal driver for interactive programs such as `ctr run -t`.

A `Terminal` owns the controlling side of a pty and the program on the other side; leaving the context kills
the program.
"""

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .patience import deadline_after


class TerminalError(AssertionError):
    """The program on the terminal did not do what the test waits for; the text holds the screen so far."""


class Terminal:
    """One program on a pty of `rows` x `columns`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        rows: int = 24,
        columns: int = 80,
    ) -> None:
        self.screen = b""
        self._master, replica = pty.openpty()
        self.set_size(rows, columns, notify=False)
        try:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=replica,
                stdout=replica,
                stderr=replica,
                env=dict(env) if env is not None else None,
                start_new_session=True,
            )
        finally:
            os.close(replica)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def pid(self) -> int:
        """Pid of the program."""
        return self._process.pid

    def set_size(self, rows: int, columns: int, *, notify: bool = True) -> None:
        """Changes the size of the terminal and tells the program as a real terminal would."""
        # struct winsize of ioctl_tty(2): ws_row, ws_col, ws_xpixel, ws_ypixel.
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if notify:
            # The program has no controlling terminal, so the kernel does not send it by itself.
            self._process.send_signal(signal.SIGWINCH)

    def resize(self, rows: int, columns: int, shown: bytes, *, timeout_s: float = 60.0) -> None:
        """Changes the size until the program shows that it has noticed.

        `ctr` looks at the size once before it listens for the signal, so one that comes in between is lost.
        """
        deadline = deadline_after(timeout_s)
        while True:
            self.set_size(rows, columns)
            try:
                self.expect(shown, timeout_s=min(1.0, timeout_s))
            except TerminalError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def write(self, data: bytes) -> None:
        """Types `data`."""
        os.write(self._master, data)

    def expect(self, text: bytes, *, timeout_s: float = 60.0) -> bytes:
        """Waits for `text` after what was seen before; returns and forgets the screen up to its end."""
        deadline = deadline_after(timeout_s)
        while text not in self.screen:
            if not self._read(deadline):
                raise TerminalError(f"The terminal did not show {text!r}: {self.screen!r}")
        end = self.screen.index(text) + len(text)
        seen, self.screen = self.screen[:end], self.screen[end:]
        return seen

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """Reads to the end and returns the program's exit status."""
        deadline = deadline_after(timeout_s)
        while self._read(deadline):
            pass
        try:
            return self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TerminalError(f"The program had not ended within {timeout_s} s: {self.screen!r}") from error

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError as error:
            # EIO: the last replica descriptor is closed, the program is gone.
            if error.errno != errno.EIO:
                raise
            return False
        self.screen += data
        return bool(data)
