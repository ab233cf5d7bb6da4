"""Reads the state of the host: processes, mounts, links, network namespaces, control groups, unix sockets.

Pure readers; nothing here changes the host. A process that vanishes while it is read is left out.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Process:
    """One process as /proc shows it; `start` is field 22 of stat and makes the pid unique within a boot."""

    pid: int
    parent: int
    state: str
    start: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} (parent {self.parent}, {self.state}) {self.command}"


def process(pid: int) -> Process | None:
    """One process, or None when there is none of that pid."""
    with contextlib.suppress(OSError):
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2 :].split()
        words = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return Process(pid, int(fields[1]), fields[0], int(fields[19]), words.strip() or f"[{name}]")
    return None


def processes() -> dict[int, Process]:
    """All processes by pid."""
    found = (process(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit())
    return {entry.pid: entry for entry in found if entry is not None}


def descendants(pid: int) -> dict[int, Process]:
    """All processes whose chain of parents leads to `pid`, without `pid` itself."""
    everything = processes()
    children: dict[int, list[Process]] = {}
    for entry in everything.values():
        children.setdefault(entry.parent, []).append(entry)
    found: dict[int, Process] = {}
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found[child.pid] = child
            todo.append(child.pid)
    return found


def mounts() -> set[str]:
    """Mount points with type and source of this mount namespace."""
    found = set()
    for line in (PROC / "self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        found.add(f"{left.split(' ')[4]} {right.split(' ')[0]} {right.split(' ')[1]}")
    return found


def links() -> set[str]:
    """Names of the network interfaces of this network namespace."""
    return {entry.name for entry in Path("/sys/class/net").iterdir()}


def network_namespaces(pids: Iterator[int] | list[int]) -> set[str]:
    """Network namespaces that the given processes are in or hold by an open descriptor."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.add(str((PROC / str(pid) / "ns/net").readlink()))
            for descriptor in (PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(descriptor.readlink())
                    if target.startswith("net:["):
                        found.add(target)
    with contextlib.suppress(OSError):
        found |= {str(entry) for entry in Path("/run/netns").iterdir()}
    return found


def cgroups(name: str) -> set[str]:
    """Control groups below any group called `name` at the top of any hierarchy, without that group itself."""
    found = set()
    for root in cgroup_roots():
        top = root / name
        for directory, _, _ in os.walk(top):
            if Path(directory) != top:
                found.add(directory)
    return found


def cgroup_roots() -> list[Path]:
    """The mount points of all control-group hierarchies, v1 and v2."""
    lines = (PROC / "self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [Path(line.split(" ")[4]) for line in lines if line.partition(" - ")[2].startswith("cgroup")]
