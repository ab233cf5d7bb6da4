"""Records which system calls the first thread of a strato-vmm makes once it has confined itself.

`python -m tests.framework.recording PID FILE`, a process of its own, because a tracer waits for nothing else.
With `STRATO_TEST_RECORD=FOLDER` each VM of the tests in its jail has one. A line of the file is a call that
differs from all others: its number and six arguments, those that no rule looks at left out as 0. Which rules
no call has met is told by `cargo run -p strato-jail --example needless -- FILE…` in vmm/native. x86-64 only.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# sys/ptrace.h
_PTRACE_SYSCALL, _PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_LISTEN = 24, 0x4206, 0x4207, 0x4208
_PTRACE_GET_SYSCALL_INFO = 0x420E
_PTRACE_O_TRACESYSGOOD = 1
_PTRACE_EVENT_STOP = 128
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_SYSCALL_INFO_ENTRY = 1
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_WALL = 0x40000000

# asm/unistd_64.h
_SECCOMP, _SET_MODE_FILTER = 317, 1
_JUDGED_BY_ARGUMENTS = {
    9: "mmap",
    10: "mprotect",
    16: "ioctl",
    72: "fcntl",
    285: "fallocate",
    302: "prlimit64",
}

FOLDER_VARIABLE = "STRATO_TEST_RECORD"
_ATTACHED = b"attached\n"

Call = tuple[int, ...]


class _SyscallInfo(ctypes.Structure):
    """``struct ptrace_syscall_info`` of linux/ptrace.h at the entry of a call."""

    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    ]


class Recorder:
    """The process that records another one from its first instruction on, if the tests are to record."""

    def __init__(self, pid: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is None:
            return
        command = [sys.executable, "-m", "tests.framework.recording", str(pid), f"{folder}/{time.time_ns()}"]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        with self._process.stdout as words:
            assert words.readline() == _ATTACHED

    def wait(self) -> None:
        """Wait until it has written what it knows; the recorded process has ended."""
        if self._process is not None:
            assert self._process.wait(60) == 0


def record(pid: int) -> set[Call]:
    """Record until the process has ended."""
    _trace(_PTRACE_SEIZE, pid, 0, _PTRACE_O_TRACESYSGOOD)
    _trace(_PTRACE_INTERRUPT, pid, 0, 0)
    os.write(1, _ATTACHED)
    calls: set[Call] = set()
    while True:
        _, status = os.waitpid(pid, _WALL)
        if not os.WIFSTOPPED(status):
            return calls
        stopped_by, event = os.WSTOPSIG(status), status >> 16
        if stopped_by == _SYSCALL_STOP:
            call = _entered(pid)
            if call is not None and call[:2] == (_SECCOMP, _SET_MODE_FILTER):
                calls.clear()  # all before it was allowed
            elif call is not None:
                calls.add(call)
            _go_on(pid, 0)
        elif event == _PTRACE_EVENT_STOP:
            if stopped_by in _STOPPING:
                _trace(_PTRACE_LISTEN, pid, 0, 0)
            else:
                _go_on(pid, 0)
        else:
            _go_on(pid, stopped_by)


def _entered(pid: int) -> Call | None:
    info = _SyscallInfo()
    _trace(_PTRACE_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
    if info.op != _SYSCALL_INFO_ENTRY:
        return None
    number = int(info.nr)
    if number == _SECCOMP or number in _JUDGED_BY_ARGUMENTS:
        return (number, *map(int, info.args))
    return (number, *[0] * 6)


def _go_on(pid: int, number: int) -> None:
    try:
        _trace(_PTRACE_SYSCALL, pid, 0, number)
    except ProcessLookupError:
        return  # killed while it stood still; its end is heard of next


def _trace(request: int, pid: int, addr: int, data: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(addr), ctypes.c_void_p(data)]
    if libc.ptrace(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request} of process {pid}: {os.strerror(number)}")


def main() -> None:
    """Record the process of the first argument into the file of the second."""
    pid, path = int(sys.argv[1]), Path(sys.argv[2])
    calls = record(pid)
    path.write_text("".join(" ".join(map(str, call)) + "\n" for call in sorted(calls)))


if __name__ == "__main__":
    main()
