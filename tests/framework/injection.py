"""Making a thread of another process call the kernel, as code of an attacker in that thread would.

ptrace(2) sets its registers and lets it take one step, over a `syscall` instruction of its own C library.
What binds that thread (its filter, Landlock, capabilities, namespaces) binds the call. x86-64 only.
"""

import ctypes
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self

# sys/ptrace.h
_PTRACE_SINGLESTEP, _PTRACE_GETREGS, _PTRACE_SETREGS = 9, 12, 13
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_WALL = 0x40000000

_SYSCALL = b"\x0f\x05"
_CODE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-xp .*/libc[.-]", re.MULTILINE)
# Below the stack pointer, and below what a function may use there without asking (128 bytes).
_SCRATCH_BELOW = 4096

_FIELDS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)


class _Registers(ctypes.Structure):
    """``struct user_regs_struct`` of sys/user.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in _FIELDS]


class ThreadKilledError(Exception):
    """The call has ended the process; the signal is the first argument."""


class Thread:
    """A stopped thread; it goes on as if nothing had been when the context ends."""

    def __init__(self, pid: int, tid: int | None = None) -> None:
        self._pid, self._tid = pid, pid if tid is None else tid
        self._memory = Path(f"/proc/{pid}/mem")
        self._registers = _Registers()
        self._at = self._find_instruction()
        self._dead = False

    def __enter__(self) -> Self:
        self._trace(_PTRACE_ATTACH)
        self._wait()
        self._trace(_PTRACE_GETREGS, ctypes.byref(self._registers))
        self._free = int(self._registers.rsp) - _SCRATCH_BELOW
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._dead:
            self._trace(_PTRACE_SETREGS, ctypes.byref(self._registers))
            self._trace(_PTRACE_DETACH)

    def text(self, words: str | os.PathLike[str]) -> int:
        """Put a string into the thread's memory; return its address."""
        return self.put(os.fsencode(words) + b"\0")

    def put(self, data: bytes) -> int:
        """Put bytes into the thread's memory; return their address."""
        self._free -= (len(data) + 15) & ~15
        with self._memory.open("r+b", buffering=0) as memory:
            memory.seek(self._free)
            memory.write(data)
        return self._free

    def call(self, number: int, *arguments: int) -> int:
        """Make a system call; return its result, an error as a negative number. Raises ThreadKilledError."""
        registers = _Registers.from_buffer_copy(self._registers)
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        for name, value in zip(names, (*arguments, *[0] * 6), strict=False):
            setattr(registers, name, value & (1 << 64) - 1)
        registers.rax, registers.rip, registers.orig_rax = number, self._at, (1 << 64) - 1
        self._trace(_PTRACE_SETREGS, ctypes.byref(registers))
        self._trace(_PTRACE_SINGLESTEP)
        self._wait()
        self._trace(_PTRACE_GETREGS, ctypes.byref(registers))
        return int(ctypes.c_int64(registers.rax).value)

    def _find_instruction(self) -> int:
        found = _CODE.search(Path(f"/proc/{self._pid}/maps").read_text())
        assert found is not None, "the process has no C library"
        start, end = int(found[1], 16), int(found[2], 16)
        with self._memory.open("rb", buffering=0) as memory:
            memory.seek(start)
            return start + memory.read(end - start).index(_SYSCALL)

    def _trace(self, request: int, data: object = None) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(ctypes.c_long(request), ctypes.c_long(self._tid), None, data) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace request {request} of thread {self._tid}: {os.strerror(number)}")

    def _wait(self) -> None:
        _, status = os.waitpid(self._tid, _WALL)
        if not os.WIFSTOPPED(status):
            self._dead = True
            raise ThreadKilledError(-os.waitstatus_to_exitcode(status))


def threads(pid: int) -> dict[str, int]:
    """Return the threads of a process by name; of several with one name, any."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "comm").read_text().strip(): int(task.name) for task in tasks}
