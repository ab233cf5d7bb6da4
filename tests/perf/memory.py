"""Host memory of a sandbox's processes from /proc/PID/smaps, with the guest's RAM reported apart."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A mapping's first line: address range, permissions, offset, device, inode, then perhaps a name.
_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")
# Guest RAM of engine tcg is a memfd, so its mappings carry that name wherever they are mapped.
_GUEST_RAM = re.compile(r"/memfd:(?!strato-shim)")
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


@dataclass(frozen=True)
class Memory:
    """KiB of one process: private and proportional without guest RAM, and the resident part of guest RAM."""

    private: int
    proportional: int
    guest_ram: int


def of_process(pid: int) -> Memory:
    """Reads one process. Raises OSError when it has gone."""
    return _read(pid, lambda line, name: bool(_GUEST_RAM.search(name)))


def of_guest_process(pid: int, ram_bytes: int) -> Memory:
    """Reads one process whose guest RAM is a mapping of just that size. Raises OSError when it has gone."""

    def is_ram(line: str, _: str) -> bool:
        bounds = _RANGE.match(line)
        return bounds is not None and int(bounds[2], 16) - int(bounds[1], 16) == ram_bytes

    return _read(pid, is_ram)


def _read(pid: int, is_guest_ram: Callable[[str, str], bool]) -> Memory:
    private = proportional = guest_ram = 0
    is_ram = False
    for line in (Path("/proc") / str(pid) / "smaps").read_text(errors="replace").splitlines():
        header = _HEADER.match(line)
        if header:
            is_ram = is_guest_ram(line, header[1])
            continue
        key, _, value = line.partition(":")
        if key == "Rss" and is_ram:
            guest_ram += int(value.split()[0])
        elif is_ram:
            continue
        elif key in ("Private_Clean", "Private_Dirty"):
            private += int(value.split()[0])
        elif key == "Pss":
            proportional += int(value.split()[0])
    return Memory(private, proportional, guest_ram)


def of_bare_interpreter() -> Memory:
    """Measures a Python that has imported nothing: what a figure "above the interpreter" is above."""
    command = [sys.executable, "-IS", "-c", "import sys; print(); sys.stdout.flush(); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = of_process(process.pid)
        process.communicate()
        return found
