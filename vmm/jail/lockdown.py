"""strato-vmm locks itself down: what it gives up, in which order, and when.

Three steps, because each thread and child inherits what was given up before it was made:

1. `before_programs`, before QEMU is started: nothing that is executed has a capability or gains a privilege.
2. `before_threads`, after that and before the library's first thread: Landlock, which would keep QEMU from
   its files; from here on each thread of a device or vCPU confines itself to its role.
3. `last`, when everything has been made and before the guest runs: the thread that starts all others, and
   this one, which is Python, QMP and the console, give up all system calls beyond their own, this one also
   its capabilities.

So the guest's first instruction finds everything confined. One `Lockdown` per process, owned by the machine;
all steps do nothing where the configuration has switched the jail off.
"""

from __future__ import annotations

import resource
from pathlib import Path

from ..config import ForbiddenCall, VmConfig
from ..decoding import encode
from ..errors import HostError
from ..log import Log
from . import view

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


LIMITS = {
    # Guest memory and keys of other guests have no place in a file, or in a program that reads cores.
    resource.RLIMIT_CORE: 0,
    # What io_uring counts here (before Linux 5.12) are rings of a few pages; nothing else of ours is locked.
    # Linux's own default (MLOCK_LIMIT); whoever starts containers has often lifted it.
    resource.RLIMIT_MEMLOCK: 8 << 20,
    # Queues of messages are the kernel's memory, and QEMU's own filter of system calls lets it make them.
    resource.RLIMIT_MSGQUEUE: 0,
    # Nobody goes before others. A second line behind the filters, the first where these only log.
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
}
"""The most that strato-vmm and QEMU may have of resources that are not their cgroup's to bound.

Not among them: processes (the limit does not bind root, the filters allow none, the cgroup counts them), the
size of files (those of disks and shares are the guest's to grow), memory and time (the cgroup's), and pending
signals: all of root's processes share one count, and a vCPU whose signal is refused stays in the guest. Open
files have their bounds where it is known how many are needed: `vmm.machine`, and for QEMU `vmm.engines.tcg`.
"""


class Lockdown:
    """See the module's docstring. The steps come in order, each once."""

    def __init__(self, config: VmConfig, log: Log) -> None:
        self._config = config
        self._log = log
        self._enabled = config.jail.enabled
        self._log_only = config.jail.forbidden_call is ForbiddenCall.LOG
        self._threads_confined = False
        if not self._enabled:
            log.warn("The jail is off: a guest that breaks out has the rights of strato-vmm")

    def before_programs(self) -> None:
        """Take from whatever will be executed what it could gain by that. Raises HostError."""
        if not self._enabled:
            return
        from .. import sys

        try:
            _limit_resources()
            sys.forbid_gains()
            sys.set_dumpable(False)
        except OSError as error:
            raise HostError("strato-vmm cannot give up privileges") from error

    def before_threads(self) -> None:
        """Restrict this thread, and those to come, to the files of this VM. Raises HostError."""
        if not self._enabled or self._threads_confined:
            return
        from .. import devices, sys

        self._threads_confined = True

        try:
            version = sys.restrict_paths(_paths(encode(self._config)))
            devices.confine_threads(log_only=self._log_only)
        except OSError as error:
            raise HostError("strato-vmm cannot be confined") from error
        if version == 0:
            self._log.warn("Landlock is not there: only the mount namespace bounds the files of strato-vmm")

    def last(self) -> None:
        """Confine this thread, for good. Raises HostError."""
        if not self._enabled:
            return
        from .. import devices, sys

        self.before_threads()
        try:
            devices.seal_threads()
            sys.confine_control(log_only=self._log_only)
        except OSError as error:
            raise HostError("strato-vmm cannot be confined") from error


def _limit_resources() -> None:
    # For good: who has given up CAP_SYS_RESOURCE raises no hard limit again.
    for kind, most in LIMITS.items():
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))


def _paths(document: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What Landlock is to allow. A path that is not there is told of by whoever wants to use it."""
    from ..sys import PathUse

    uses = {
        view.Access.DATA: PathUse.READ,
        view.Access.CODE: PathUse.READ,
        view.Access.PROGRAM: PathUse.READ,
        view.Access.FOLDER: PathUse.FOLDER,
        view.Access.TREE: PathUse.TREE,
        view.Access.TREE_READONLY: PathUse.READ,
        view.Access.DEVICE: PathUse.DEVICE,
        view.Access.DEVICE_READONLY: PathUse.DEVICE_READONLY,
    }
    views = [*view.installation(), *view.machine(document)]
    return [(item.path, uses[item.access]) for item in views if Path(item.path).exists()]
