"""SIGKILL of any process at any moment: the daemon learns of it, and after its clean-up nothing is left."""

import contextlib
import os
import signal
import time
from pathlib import Path
from random import Random

import pytest

from tests.framework import host
from tests.framework.command import eventually
from tests.framework.daemons import TestDaemon
from tests.framework.sandbox import processes_of

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]
DAEMONS = ("1.6", "2.3")

READY = ["sh", "-c", "echo ready; sleep 1000"]
BOUND_S = 30.0
# From the start of a VM to the end of all on a machine at rest, and a little more.
LIFE_S = 2.5
# A shim that nobody asks for anything ends after a minute (docs/limitations.md).
GIVES_UP_S = 90.0
# Of the command lines of a sandbox's processes.
WORDS = {
    "qemu": "qemu-system",
    "vmm": "from vmm.__main__",
    "shim": " -debug run",  # the daemon, and none of the other verbs of its program
    "holder": "strato: ",  # its title
}
QEMU = pytest.param("qemu", marks=pytest.mark.engine("tcg", reason="only this engine has QEMU for a child"))


@pytest.mark.parametrize("kind", [QEMU, "vmm"])
def test_death_of_the_machine_ends_the_task_with_137(daemon: TestDaemon, kind: str) -> None:
    # Devices of our own are threads of strato-vmm and have no death but its; a panic is an event, which
    # a test of the library provokes (abi/src/device/tests.rs).
    ctr = daemon.ctr
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, READY, "--rm")) as client:
        client.expect(b"ready")
        processes = processes_of(daemon, name)
        os.kill(processes.pids[kind], signal.SIGKILL)
        assert client.wait(timeout_s=BOUND_S).status == 137
    processes.assert_gone()
    assert ctr.tasks() == {}


def test_death_of_the_holder_kills_its_container(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, READY, "--rm")) as client:
        client.expect(b"ready")
        processes = processes_of(daemon, name)
        os.kill(processes.pids["holder"], signal.SIGKILL)
        assert client.wait(timeout_s=BOUND_S).status == 137
    processes.assert_gone()


def test_death_of_the_shim_is_cleaned_up_by_the_daemon(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, READY, "--rm")) as client:
        client.expect(b"ready")
        processes = processes_of(daemon, name)
        os.kill(processes.pids["shim"], signal.SIGKILL)
        # ctr has the connection's end as an error or as the exit that the daemon reports, whichever is first.
        assert client.wait(timeout_s=BOUND_S).status in (1, 137, 255)
    processes.assert_gone()
    eventually(lambda: ctr.tasks() == {}, "the daemon forgets the task")


def test_death_of_everything_at_once_is_cleaned_up(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    name = ctr.run_detached("sleep", "1000")
    processes = processes_of(daemon, name)
    for pid in processes.pids.values():
        # The death of one takes others with it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    processes.assert_gone()
    eventually(lambda: ctr.tasks() == {}, "the daemon forgets the task")


def test_death_of_daemon_and_shim_is_cleaned_up_at_the_next_start(daemon: TestDaemon) -> None:
    name = daemon.ctr.run_detached("sleep", "1000")
    processes = processes_of(daemon, name)
    daemon.containerd.stop(force=True)
    os.kill(processes.pids["shim"], signal.SIGKILL)
    daemon.containerd.start()
    eventually(lambda: daemon.ctr.tasks() == {}, "the daemon forgets the task")
    processes.assert_gone()


@pytest.mark.parametrize("kind", [QEMU, "vmm", "shim", "holder"])
def test_death_while_a_container_is_being_created_leaves_nothing(daemon: TestDaemon, kind: str) -> None:
    ctr = daemon.ctr
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, ["true"], "--rm")) as client:
        # Not before: containerd calls no clean-up for a shim that dies before it has connected.
        eventually(lambda: bool(_below(WORDS["vmm"])), "the VM is started")
        killed: list[host.Process] = []
        eventually(lambda: bool(killed) or _kill_one(kind, killed), f"{kind} runs")
        result = client.wait(timeout_s=BOUND_S)
        assert result.status != 0, killed
    assert ctr.tasks() == {}


def test_death_of_the_daemon_while_a_container_is_being_created_leaves_nothing(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, ["sleep", "1000"], "--rm")) as client:
        eventually(lambda: bool(_below(WORDS["vmm"])), "the VM is started")
        daemon.containerd.stop(force=True)
        assert client.wait(timeout_s=BOUND_S).status != 0
    daemon.containerd.start()
    ctr.remove(name)
    assert ctr.tasks() == {}
    assert ctr.containers() == []
    # containerd 1.6 keeps a shim whose container it does not find, and asks nothing more of it.
    eventually(lambda: not _below(WORDS["shim"]), "the shim gives up", timeout_s=GIVES_UP_S)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", [QEMU, "vmm", "shim", "holder", "daemon"])
def test_death_at_any_moment_leaves_nothing(daemon: TestDaemon, kind: str, seed: int) -> None:
    random = Random(f"{kind} {seed}")
    ctr = daemon.ctr
    name = ctr.new_id()
    command = ["sh", "-c", "head -c 3000000 /dev/zero | cat; exit 5"]
    with ctr.background(*ctr.run_arguments(name, command, "--rm")) as client:
        eventually(lambda: bool(_below(WORDS["vmm"])), "the VM is started")
        time.sleep(random.uniform(0, LIFE_S))  # no event: any moment is meant, also one after the end
        if kind == "daemon":
            daemon.containerd.stop(force=True)
        else:
            _kill_one(kind, [])
        client.wait(timeout_s=BOUND_S)
    if not daemon.containerd.running:
        daemon.containerd.start()
    ctr.remove(name)
    assert ctr.tasks() == {}
    assert ctr.containers() == []
    eventually(lambda: not _below(WORDS["shim"]), "the shim gives up", timeout_s=GIVES_UP_S)


@pytest.mark.parametrize("kind", [QEMU, "vmm"])
def test_exit_of_a_container_after_the_kill_of_another_is_its_own(
    daemon: TestDaemon, tmp_path: Path, kind: str
) -> None:
    ctr = daemon.ctr
    first, second = ctr.new_id(), ctr.new_id()
    script = "echo ready; until test -e /flag/go; do sleep 0.05; done; exit 7"
    mount = ("--mount", f"type=bind,src={tmp_path},dst=/flag,options=rbind:ro")
    with (
        ctr.background(*ctr.run_arguments(first, READY, "--rm")) as one,
        ctr.background(*ctr.run_arguments(second, ["sh", "-c", script], "--rm", *mount)) as other,
    ):
        one.expect(b"ready")
        other.expect(b"ready")
        os.kill(processes_of(daemon, first).pids[kind], signal.SIGKILL)
        assert one.wait(timeout_s=BOUND_S).status == 137
        (tmp_path / "go").touch()
        assert other.wait(timeout_s=BOUND_S).status == 7


def _kill_one(kind: str, killed: list[host.Process]) -> bool:
    for entry in _below(WORDS[kind]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
            killed.append(entry)
            return True
    return False


def _below(word: str) -> list[host.Process]:
    return [entry for entry in host.descendants(os.getpid()).values() if word in entry.command]
