"""SIGKILL of any process at any moment: the daemon learns of it, and after its clean-up nothing is left."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.framework import host
from tests.framework.command import eventually
from tests.framework.daemons import TestDaemon
from tests.framework.sandbox import processes_of

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]
DAEMONS = ("1.6", "2.3")

READY = ["sh", "-c", "echo ready; sleep 1000"]
BOUND_S = 30.0
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


@pytest.mark.parametrize("kind", [QEMU, "vmm", "shim"])
def test_death_while_a_container_is_being_created_leaves_nothing(daemon: TestDaemon, kind: str) -> None:
    ctr = daemon.ctr
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, ["true"], "--rm")) as client:
        word = {"qemu": "qemu-system", "vmm": "from vmm.__main__", "shim": "containerd-shim-strato-v2"}[kind]
        # Not before: containerd calls no clean-up for a shim that dies before it has connected.
        eventually(lambda: bool(_below("from vmm.__main__")), "the VM is started")
        eventually(lambda: _kill_one(word), f"{kind} runs")
        result = client.wait(timeout_s=BOUND_S)
        assert result.status != 0
    assert ctr.tasks() == {}


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


def _kill_one(word: str) -> bool:
    for pid in _below(word):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _below(word: str) -> list[int]:
    below = host.descendants(os.getpid()).values()
    return [entry.pid for entry in below if word in entry.command and " start" not in entry.command]
