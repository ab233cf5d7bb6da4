"""The processes that strato-vmm starts, and the reaping of those that it did not.

strato-vmm is PID 1 of its pid namespace, so every orphan becomes its child. `ProcessTable` is the only
caller of wait(): it reaps everything on SIGCHLD and tells the owner of each known process. That leaves
no window in which a pid could be reused before its owner knows of the death.
Children are started by posix_spawn only: a fork of a process with guest memory or threads is never safe.
"""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import HostError
from .log import MAX_LINE, Log
from .loop import EventLoop
from .record import field, record
from .signals import killed_by

STDERR_TAIL_BYTES = 4096
READ_BYTES = 16384
MAX_LAST_READS = 64  # a pipe holds 64 KiB unless enlarged; a child of the dead may go on writing

# Python ignores SIGPIPE, the loop handles the others; a program expects none of that.
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@record(eq=False)
class Process:
    """One started program. ``status`` is None while it lives, then as of `os.waitstatus_to_exitcode`."""

    name: str
    pid: int
    on_exit: Callable[["Process"], None]
    stderr_fd: int
    status: int | None = None
    stderr_tail: bytearray = field(default_factory=bytearray)
    stderr_line: bytes = b""
    """The beginning of a line whose end has not been written yet."""

    @property
    def alive(self) -> bool:
        """Whether it has not been reaped."""
        return self.status is None

    def signal(self, number: int) -> None:
        """Send a signal unless the process has ended (its pid cannot have been reused: see the module)."""
        if self.alive:
            os.kill(self.pid, number)

    def describe_exit(self) -> str:
        """Return how it ended, with its last words, for an error message."""
        if self.status is None:
            how = "is running"
        elif self.status < 0:
            how = killed_by(-self.status)
        else:
            how = f"ended with status {self.status}"
        words = self.stderr_tail.decode(errors="replace").strip()
        return f"{self.name} (pid {self.pid}) {how}" + (f"; its last words: {words}" if words else "")


class ProcessTable:
    """All children of this process."""

    def __init__(self, loop: EventLoop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._processes: dict[int, Process] = {}
        loop.on_signals([signal.SIGCHLD], self.reap)

    def spawn(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        pass_fds: Sequence[int] = (),
        on_exit: Callable[[Process], None],
    ) -> Process:
        """Start a program with /dev/null as input and output, and its stderr captured.

        ``pass_fds`` keep their numbers in the child. Raises HostError.
        """
        self._log.debug("spawn", name=name, command=" ".join(map(quoted, arguments)))
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_end, True)  # it is the child's stderr; only our end must not block
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, write_end, 2),
            # dup2 of a descriptor onto itself clears its close-on-exec flag here (POSIX.1-2024, glibc 2.29)
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds),
        ]
        try:
            pid = os.posix_spawn(
                arguments[0],
                list(arguments),
                os.environ,
                file_actions=actions,
                setsigmask=(),
                setsigdef=_RESET_SIGNALS,
            )
        except OSError as error:
            os.close(read_end)
            raise HostError(f"Program {arguments[0]} cannot be started") from error
        finally:
            os.close(write_end)
        process = Process(name=name, pid=pid, on_exit=on_exit, stderr_fd=read_end)
        self._processes[pid] = process
        self._loop.add_reader(read_end, lambda: self._read_stderr(process))
        return process

    def living(self) -> list[Process]:
        """Return the processes that have not been reaped."""
        return list(self._processes.values())

    def reap(self) -> None:
        """Reap all children that have ended and tell their owners; called on SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._processes.pop(pid, None)
            if process is None:
                continue  # an orphan that was re-parented to us
            process.status = os.waitstatus_to_exitcode(status)
            for _ in range(MAX_LAST_READS):
                self._read_stderr(process)
            self._close_stderr(process)
            self._log.debug("process ended", name=process.name, pid=pid, status=process.status)
            process.on_exit(process)

    def _read_stderr(self, process: Process) -> None:
        if process.stderr_fd < 0:
            return
        try:
            data = os.read(process.stderr_fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close_stderr(process)
            return
        process.stderr_tail += data
        del process.stderr_tail[:-STDERR_TAIL_BYTES]
        # QEMU writes its lines piece by piece.
        *lines, process.stderr_line = (process.stderr_line + data).split(b"\n")
        if len(process.stderr_line) > MAX_LINE:
            lines.append(process.stderr_line)
            process.stderr_line = b""
        for line in lines:
            self._log_line(process, line)

    def _log_line(self, process: Process, line: bytes) -> None:
        if line.strip():
            # Not more than debug: virtiofsd reports an error at every good end. A death quotes the tail.
            self._log.debug(line.decode(errors="replace"), program=process.name)

    def _close_stderr(self, process: Process) -> None:
        if process.stderr_fd >= 0:
            self._log_line(process, process.stderr_line)
            self._loop.remove_reader(process.stderr_fd)
            os.close(process.stderr_fd)
            process.stderr_fd = -1


def quoted(argument: str | Path) -> str:
    """Quote an argument for a shell, so that a logged command can be pasted."""
    import shlex

    return shlex.quote(str(argument))
