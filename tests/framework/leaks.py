"""The leak checker: what the host holds before a test must be what it holds afterwards.

The pytest process is a child subreaper (tests/conftest.py), so whatever a test starts stays in its process
tree, however often it forks away; the tree is the scope for processes and network namespaces. Mounts
and links are compared for the whole host.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from . import host
from .patience import deadline_after

SETTLE_S = 15.0
NAMED_NAMESPACES = "/run/netns"  # of iproute2


@dataclass(frozen=True)
class Scope:
    """Where to look: the group of all containers, the daemon's and the runtime's directories, and the sockets
    that the shims of all containers so far could have left (their directory is shared by all daemons of a
    machine).
    """

    cgroup: str
    directory: Path
    state_root: Path
    shim_sockets: Callable[[], Collection[Path]]


@dataclass(frozen=True)
class HostState:
    """What the host holds, each kind as a set of printable names."""

    processes: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    network_namespaces: frozenset[str]
    cgroups: frozenset[str]
    sockets: frozenset[str]
    state: frozenset[str]

    @classmethod
    def capture(cls, scope: Scope, ignored: Collection[int] = ()) -> Self:
        """Reads the host. `ignored` are pids of the tests' own helpers."""
        tree = {pid: entry for pid, entry in host.descendants(os.getpid()).items() if pid not in ignored}
        state: frozenset[str] = frozenset()
        with contextlib.suppress(OSError):
            state = frozenset(str(entry) for entry in scope.state_root.iterdir())
        return cls(
            processes=frozenset(f"{entry.pid}@{entry.start}" for entry in tree.values()),
            mounts=frozenset(mount for mount in host.mounts() if not _is_foreign(mount, scope.directory)),
            links=frozenset(host.links()),
            network_namespaces=frozenset(host.network_namespaces([os.getpid(), *tree])),
            cgroups=frozenset(host.cgroups(scope.cgroup)),
            sockets=frozenset(str(path) for path in scope.shim_sockets() if path.exists()),
            state=state,
        )

    def added_since(self, before: Self) -> list[str]:
        """Readable lines for everything that `before` did not hold."""
        lines = []
        for name in self.__dataclass_fields__:
            for item in sorted(getattr(self, name) - getattr(before, name)):
                lines.append(f"{name}: {_describe(name, item)}")
        return lines


class LeakChecker:
    """Compares the host with the moment of construction."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        reap_orphans()
        self._before = HostState.capture(scope)

    def leaks(self, *, settle_s: float = SETTLE_S, ignored: Collection[int] = ()) -> list[str]:
        """What was added, after giving asynchronous clean-up `settle_s` to finish. Empty when nothing is.

        `ignored` are pids that may be new, such as a daemon that a test has started again.
        """
        deadline = deadline_after(settle_s)
        while True:
            reap_orphans()
            added = HostState.capture(self._scope, ignored).added_since(self._before)
            if not added or time.monotonic() > deadline:
                return added
            time.sleep(0.05)  # the disappearance of mounts and groups has no event

    def assert_clean(self, *, settle_s: float = SETTLE_S, ignored: Collection[int] = ()) -> None:
        """Raises AssertionError listing everything that was left over."""
        added = self.leaks(settle_s=settle_s, ignored=ignored)
        assert not added, "Left over after the test:\n  " + "\n  ".join(added)


def reap_orphans() -> None:
    """Collects dead children that came to us as subreaper. To be called while no program of the test runs."""
    for pid, entry in host.descendants(os.getpid()).items():
        if entry.parent == os.getpid() and entry.state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _is_foreign(mount: str, own: Path) -> bool:
    # Other test sessions of this machine have their daemons in directories named alike (scratch_directory).
    # The first `ip netns add` of a host mounts the folder of the names, for good.
    place = mount.split(" ")[0]
    return place == NAMED_NAMESPACES or ("/strato-" in place and f"/{own.name}/" not in mount)


def _describe(kind: str, item: str) -> str:
    if kind != "processes":
        return item
    found = host.process(int(item.partition("@")[0]))
    return str(found) if found else item
