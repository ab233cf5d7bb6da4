"""Host memory of a sandbox's processes from /proc/PID/smaps, with the guest's RAM reported apart."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# A mapping's first line: address range, permissions, offset, device, inode, then perhaps a name.
_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)$")
# Guest RAM of engine tcg is a memfd, so its mappings carry that name wherever they are mapped.
_GUEST_RAM = re.compile(r"/memfd:(?!strato-shim)")
# That of engine kvm is marked MADV_DONTFORK and MADV_DONTDUMP, which nothing else is; io_uring's rings are
# device memory ("io") with the same marks.
_RAM_FLAGS, _DEVICE_FLAG = {"dc", "dd"}, "io"


@dataclass(frozen=True)
class Memory:
    """KiB of one process: private and proportional without guest RAM, and the resident part of that.

    `dirty` is the part of `private` that the process has written. Code counts as private as well, while no
    other process maps the same file.
    """

    private: int
    dirty: int
    proportional: int
    guest_ram: int


def of_process(pid: int) -> Memory:
    """Reads one process. Raises OSError when it has gone."""
    return _sum(pid, _is_guest_ram)


def of_guest_process(pid: int, ram_bytes: int) -> Memory:
    """Reads one process whose guest RAM is a mapping of just that size. Raises OSError when it has gone."""
    return _sum(pid, lambda mapping: mapping.size == ram_bytes)


@dataclass(frozen=True)
class _Mapping:
    size: int
    name: str
    kib: dict[str, int] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)


def _is_guest_ram(mapping: _Mapping) -> bool:
    marked = mapping.flags >= _RAM_FLAGS and _DEVICE_FLAG not in mapping.flags
    return marked or bool(_GUEST_RAM.search(mapping.name))


def _sum(pid: int, is_guest_ram: Callable[[_Mapping], bool]) -> Memory:
    private = dirty = proportional = guest_ram = 0
    for mapping in _mappings(pid):
        if is_guest_ram(mapping):
            guest_ram += mapping.kib["Rss"]
        else:
            private += mapping.kib["Private_Clean"] + mapping.kib["Private_Dirty"]
            dirty += mapping.kib["Private_Dirty"]
            proportional += mapping.kib["Pss"]
    return Memory(private, dirty, proportional, guest_ram)


def _mappings(pid: int) -> list[_Mapping]:
    found: list[_Mapping] = []
    for line in (Path("/proc") / str(pid) / "smaps").read_text(errors="replace").splitlines():
        header = _HEADER.match(line)
        if header:
            found.append(_Mapping(int(header[2], 16) - int(header[1], 16), header[3]))
            continue
        key, _, value = line.partition(":")
        if key == "VmFlags":
            found[-1].flags.update(value.split())
        elif value.endswith("kB"):
            found[-1].kib[key] = int(value.split()[0])
    return found


def of_bare_interpreter() -> Memory:
    """Measures a Python that has imported nothing: what a figure "above the interpreter" is above."""
    code = "import sys; print(); sys.stdout.flush(); sys.stdin.read()"
    return of_command([sys.executable, "-IS", "-c", code])


def of_command(command: Sequence[str]) -> Memory:
    """Measures a program that prints a line when it is ready, and ends with its input."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = of_process(process.pid)
        process.communicate()
        return found
