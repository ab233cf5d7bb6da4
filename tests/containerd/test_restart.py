"""The daemon may go and come back at any time: tasks live on, and no exit is lost."""

from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr
from tests.framework.daemons import ALL_DAEMONS, TestDaemon

pytestmark = pytest.mark.containerd
DAEMONS = ALL_DAEMONS


@pytest.mark.parametrize("force", [False, True], ids=["term", "kill"])
def test_task_lives_on_and_is_found_again(daemon: TestDaemon, force: bool) -> None:
    ctr = daemon.ctr
    name = ctr.run_detached("sleep", "1000")
    before = ctr.tasks()[name]
    daemon.containerd.stop(force=force)
    daemon.containerd.start()
    assert ctr.tasks()[name] == before
    assert ctr.exec(name, "echo", "still here").check().text == "still here"
    ctr.kill(name).check()
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")
    assert "exit code 137" in ctr.call("task", "delete", name).check().error_text


@pytest.mark.usefixtures("strato_only")
def test_exit_while_the_daemon_was_away_is_not_lost(daemon: TestDaemon, tmp_path: Path) -> None:
    # containerd 2.3 takes a shim without pids for a leaked one at its start, and runc's has none after the
    # exit.
    ctr = daemon.ctr
    mount = ("--mount", f"type=bind,src={tmp_path},dst=/flag,options=rbind:rw")
    script = "until test -e /flag/go; do sleep 0.05; done; touch /flag/gone; exit 7"
    name = ctr.run_detached("sh", "-c", script, options=mount)
    daemon.containerd.stop(force=True)
    (tmp_path / "go").touch()
    eventually((tmp_path / "gone").exists, "the container saw the flag")
    daemon.containerd.start()
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")
    assert "exit code 7" in ctr.call("task", "delete", name).check().error_text


def test_output_goes_on_after_a_restart(daemon: TestDaemon, tmp_path: Path) -> None:
    ctr = daemon.ctr
    log = tmp_path / "log"
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    name = ctr.new_id()
    words = ctr.run_arguments(name, ["sh", "-c", script], "--detach", "--log-uri", f"file://{log}")
    ctr.call(*words).check()
    eventually(lambda: log.exists() and "line 3\n" in log.read_text(), "first lines")
    daemon.containerd.stop(force=True)
    seen = len(log.read_text().splitlines())
    eventually(lambda: len(log.read_text().splitlines()) > seen + 3, "lines without a daemon")
    daemon.containerd.start()
    seen = len(log.read_text().splitlines())
    eventually(lambda: len(log.read_text().splitlines()) > seen + 3, "lines after the restart")
    lines = log.read_text().splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]


def test_input_by_attach_works_after_a_restart(daemon: TestDaemon, tmp_path: Path) -> None:
    ctr: Ctr = daemon.ctr
    name = ctr.new_id()
    ctr.call(*ctr.run_arguments(name, ["cat"], "--detach", "--fifo-dir", tmp_path)).check()
    daemon.containerd.stop(force=True)
    daemon.containerd.start()
    with ctr.background("task", "attach", name) as client:
        client.write(b"hello again\n")
        client.expect(b"hello again\n")
        ctr.kill(name).check()
        client.wait(timeout_s=20)
