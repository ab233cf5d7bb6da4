"""Starting a program through strato-launch: in new namespaces and cgroups, yet as a child of this process.

Called by the shim and ``strato vm run`` for strato-vmm. Uses posix_spawn, because subprocess costs an import
that the shim's start cannot afford, and because a process with threads must not fork.

With ``--die-with-parent`` the program gets SIGKILL when the *thread* that called `launch` ends.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# The signal module would bring enum along.
_SIGKILL = 9
_SIGSTOP = 19
_SETTABLE_SIGNALS = tuple(number for number in range(1, 32) if number not in (_SIGKILL, _SIGSTOP))

_TIMEOUT_MS = 20_000
"""For fork, namespaces and exec on a loaded machine; only a dead file system needs longer."""


class LaunchError(Exception):
    """The program could not be started; the message names the step, the object and the reason."""


class Launched:
    """A started program. It is this process's child: wait for ``pid``."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __repr__(self) -> str:
        return f"Launched(pid={self.pid})"


def launch(
    launcher: str,
    arguments: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stdio: tuple[int, int, int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Launched:
    """Run strato-launch and return when the program has been exec'ed.

    ``arguments`` are strato-launch's options, ``--``, the program's path and its arguments; ``--status-fd``
    is added here. ``pass_fds`` keep their numbers and stay open in the program; ``stdio`` replaces
    descriptors 0 to 2.
    Blocks for the few milliseconds that it takes. Raises LaunchError; a failed child has been reaped then.
    """
    reader, writer = os.pipe()
    try:
        # dup2 of a descriptor to itself clears CLOEXEC in the child only (POSIX, glibc 2.29).
        actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (*pass_fds, writer)]
        if stdio is not None:
            actions += [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(stdio)]
        argv = [launcher, "--status-fd", str(writer), *arguments]
        try:
            # Python ignores two; a caller may ignore or block others. The program must not inherit that.
            pid = os.posix_spawn(
                launcher,
                argv,
                dict(os.environ if env is None else env),
                file_actions=actions,
                setsigdef=_SETTABLE_SIGNALS,
                setsigmask=(),
            )
        except OSError as error:
            raise LaunchError(f"Launcher {launcher} cannot be started: {error.strerror}") from error
        finally:
            os.close(writer)
        line = _read_all(reader, pid)
    finally:
        os.close(reader)
    _reap(pid)
    return Launched(_started_pid(line, launcher))


def _started_pid(line: str, launcher: str) -> int:
    """Parse the launcher's one line; on failure reap the child that it names."""
    word, _, rest = line.rstrip("\n").partition(" ")
    if word == "pid" and rest.isdecimal():
        return int(rest)
    if word != "error":
        raise LaunchError(f"Launcher {launcher} died before it reported; its last words: {line!r}")
    text, _, child = rest.partition("\tpid ")
    if child.isdecimal():
        _reap(int(child))
    raise LaunchError(text)


def _read_all(fd: int, launcher_pid: int) -> str:
    """Read to the end of file, which comes when the launcher has ended; kill it if it takes too long."""
    import select  # a shared object of its own: not at the cost of everyone who imports vmm.sys

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    parts = []
    while True:
        if not poll.poll(_TIMEOUT_MS):
            os.kill(launcher_pid, _SIGKILL)
            break
        part = os.read(fd, 4096)
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _reap(pid: int) -> None:
    try:  # noqa: SIM105 (contextlib costs an import)
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # someone who waits for all children was faster
