"""The processes of one Strato sandbox, found on the host by its state file and process tree."""

import json
from dataclasses import dataclass

from vmm.config import EngineName

from . import host
from .command import eventually
from .daemons import TestDaemon
from .engine import engine_in_use

# Kind of process and a word of its command line, for those that strato-vmm starts with each engine. Devices
# that our own cores serve have no process: they are threads of strato-vmm.
BACKENDS = {EngineName.TCG: {"qemu": "qemu-system"}, EngineName.KVM: {}}


@dataclass(frozen=True)
class SandboxProcesses:
    """Pids on the host, by kind."""

    pids: dict[str, int]
    everything: tuple[host.Process, ...]

    def assert_gone(self) -> None:
        """Waits until none of the processes is left."""
        for entry in self.everything:
            eventually(lambda entry=entry: not _alive(entry), f"{entry} is gone")  # type: ignore[misc]


def processes_of(daemon: TestDaemon, container_id: str) -> SandboxProcesses:
    """The processes of the sandbox that holds a container. Raises LookupError when there is none."""
    for path in daemon.state_root.glob("*/state.json"):
        state = json.loads(path.read_text())
        if container_id in state["containers"]:
            pids = {
                "shim": state["shim"]["pid"],
                "vmm": state["vmm"]["pid"],
                "holder": state["containers"][container_id]["holder"]["pid"],
            }
            below = host.descendants(pids["vmm"])
            for kind, word in BACKENDS[engine_in_use()].items():
                pids[kind] = min(pid for pid, entry in below.items() if word in entry.command)
            every = [entry for pid in pids.values() if (entry := host.process(pid)) is not None]
            return SandboxProcesses(pids, (*every, *below.values()))
    raise LookupError(f"No state file below {daemon.state_root} names container {container_id}")


def _alive(entry: host.Process) -> bool:
    now = host.process(entry.pid)
    return now is not None and now.start == entry.start and now.state != "Z"
