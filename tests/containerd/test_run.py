"""Running containers: foreground, `--rm`, detached, list, kill, delete, exit statuses."""

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr
from tests.framework.daemons import ALL_DAEMONS

pytestmark = pytest.mark.containerd
DAEMONS = ALL_DAEMONS


def test_run_prints_output_of_both_streams(ctr: Ctr) -> None:
    result = ctr.run("sh", "-c", "echo out; echo err >&2").check()
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_run_rm_leaves_no_task_and_no_container(ctr: Ctr) -> None:
    ctr.run("true").check()
    assert ctr.tasks() == {}
    assert ctr.containers() == []


def test_run_detached_is_listed_with_a_live_host_pid(ctr: Ctr) -> None:
    name = ctr.run_detached("sleep", "1000")
    task = ctr.tasks()[name]
    assert task.status == "RUNNING"
    assert task.pid > 1


def test_kill_term_reaches_the_handler_of_init_and_delete_reports_its_status(ctr: Ctr) -> None:
    name = ctr.new_id()
    script = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.05; done"
    with ctr.background(*ctr.run_arguments(name, ["sh", "-c", script])) as client:
        client.expect(b"ready")
        ctr.kill(name, "SIGTERM").check()
        assert client.wait(timeout_s=30).status == 143


def test_delete_reports_the_status_of_a_task_that_ended_by_itself(ctr: Ctr) -> None:
    name = ctr.run_detached("sh", "-c", "exit 42")
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")
    assert "exit code 42" in ctr.call("task", "delete", name).check().error_text


def test_delete_of_a_running_task_is_refused(ctr: Ctr) -> None:
    name = ctr.run_detached("sleep", "1000")
    result = ctr.call("task", "delete", name)
    assert result.status != 0
    assert "must be stopped" in result.error_text or "running" in result.error_text
    assert ctr.tasks()[name].status == "RUNNING"


def test_second_container_of_the_same_id_is_refused(ctr: Ctr) -> None:
    name = ctr.run_detached("sleep", "1000")
    result = ctr.call(*ctr.run_arguments(name, ["true"], "--rm"))
    assert result.status != 0
    assert "already exists" in result.error_text


@pytest.mark.parametrize("status", [0, 1, 42, 127, 255])
def test_exit_status_of_init_is_relayed(ctr: Ctr, status: int) -> None:
    assert ctr.run("sh", "-c", f"exit {status}").status == status


def test_sigkill_of_init_is_relayed_as_137(ctr: Ctr) -> None:
    name = ctr.new_id()
    with ctr.background(*ctr.run_arguments(name, ["sh", "-c", "echo ready; sleep 1000"], "--rm")) as client:
        client.expect(b"ready")
        ctr.kill(name, "SIGKILL").check()
        assert client.wait(timeout_s=30).status == 137
