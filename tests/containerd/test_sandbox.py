"""Several containers in one sandbox, grouped by the annotations that Kubernetes uses."""

import os
import signal
from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr
from tests.framework.daemons import TestDaemon
from tests.framework.runtime import Runtime

pytestmark = pytest.mark.containerd


def member(sandbox_id: str, kind: str) -> tuple[str, ...]:
    """The `ctr` options that put a container into a sandbox."""
    return (
        "--annotation",
        f"io.kubernetes.cri.sandbox-id={sandbox_id}",
        "--annotation",
        f"io.kubernetes.cri.container-type={kind}",
    )


@pytest.fixture
def sandbox(ctr: Ctr) -> str:
    """A running sandbox container; its id is the sandbox's."""
    name = ctr.new_id("pod")
    words = ctr.run_arguments(name, ["sleep", "1000"], "--detach", "--null-io", *member(name, "sandbox"))
    ctr.call(*words).check()
    return name


def address_of(daemon: TestDaemon, container_id: str) -> str:
    """The address of the shim that serves a container."""
    (path,) = daemon.containerd.state_dir.rglob(f"{container_id}/address")
    return path.read_text()


def test_members_share_one_shim_and_one_guest(daemon: TestDaemon, sandbox: str, runtime: Runtime) -> None:
    ctr = daemon.ctr
    name = ctr.run_detached("sleep", "1000", options=member(sandbox, "container"))
    boots = {ctr.exec(one, "cat", "/proc/sys/kernel/random/boot_id").check().text for one in (sandbox, name)}
    assert len(boots) == 1
    if runtime.is_strato:
        assert address_of(daemon, name) == address_of(daemon, sandbox)
        assert len(list(daemon.state_root.glob("*/state.json"))) == 1
        assert boots != {Path("/proc/sys/kernel/random/boot_id").read_text().strip()}


def test_member_has_its_own_root_and_processes(ctr: Ctr, sandbox: str) -> None:
    name = ctr.run_detached("sh", "-c", "echo mine > /mine; sleep 1000", options=member(sandbox, "container"))
    eventually(lambda: ctr.exec(name, "cat", "/mine").stdout == b"mine\n", "file written")
    assert ctr.exec(sandbox, "test", "-e", "/mine").status == 1
    assert int(ctr.exec(name, "sh", "-c", "ls /proc | grep -c '^[0-9]'").check().text) <= 4


def test_end_of_a_member_leaves_the_others_alone(ctr: Ctr, sandbox: str) -> None:
    for status in (3, 4):
        result = ctr.run("sh", "-c", f"exit {status}", options=member(sandbox, "container"))
        assert result.status == status
    name = ctr.run_detached("sleep", "1000", options=member(sandbox, "container"))
    ctr.remove(name)
    assert ctr.exec(sandbox, "echo", "alive").check().text == "alive"


def test_members_end_with_their_own_statuses_in_parallel(ctr: Ctr, sandbox: str) -> None:
    names = [ctr.run_detached("sleep", "1000", options=member(sandbox, "container")) for _ in range(3)]
    for name in names:
        ctr.kill(name).check()
    eventually(lambda: all(ctr.tasks()[name].status == "STOPPED" for name in names), "members stopped")
    assert ctr.tasks()[sandbox].status == "RUNNING"


def test_death_of_a_members_holder_ends_that_member_only(
    daemon: TestDaemon, sandbox: str, runtime: Runtime
) -> None:
    if not runtime.is_strato:
        pytest.skip("only a microVM has a holder")
    ctr = daemon.ctr
    name = ctr.run_detached("sleep", "1000", options=member(sandbox, "container"))
    os.kill(ctr.tasks()[name].pid, signal.SIGKILL)
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "member stopped")
    assert ctr.tasks()[sandbox].status == "RUNNING"
    assert ctr.exec(sandbox, "echo", "alive").check().text == "alive"
