"""Pause and resume, processes, metrics, the guest's clock."""

import time
from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr
from tests.framework.daemons import ALL_DAEMONS
from tests.framework.guest_programs import compile_static

pytestmark = pytest.mark.containerd
DAEMONS = ALL_DAEMONS

CLOCK_BOUND_S = 0.1
COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done"


def test_pause_stops_the_processes_and_resume_continues_them(ctr: Ctr, tmp_path: Path) -> None:
    options = ("--mount", f"type=bind,src={tmp_path},dst=/tmp,options=rbind:rw")
    name = ctr.run_detached("sh", "-c", COUNTER, options=options)

    def count() -> str:
        path = tmp_path / "count"
        return path.read_text() if path.exists() else ""

    eventually(lambda: count() != "", "counter runs")
    ctr.call("task", "pause", name).check()
    assert ctr.tasks()[name].status == "PAUSED"
    before = count()
    time.sleep(0.3)  # the absence of progress has no event
    assert count() == before
    ctr.call("task", "resume", name).check()
    assert ctr.tasks()[name].status == "RUNNING"
    eventually(lambda: count() not in ("", before), "counter goes on")


def test_exec_in_a_paused_task_is_refused(ctr: Ctr) -> None:
    name = ctr.run_detached("sleep", "1000")
    ctr.call("task", "pause", name).check()
    result = ctr.exec(name, "true", timeout_s=20)
    assert result.status != 0
    assert "paused" in result.error_text
    ctr.call("task", "resume", name).check()


def test_processes_hold_the_task_pid(ctr: Ctr) -> None:
    name = ctr.run_detached("sh", "-c", "sleep 999 & wait")
    rows = ctr.call("task", "ps", name).check().text.splitlines()[1:]
    assert str(ctr.tasks()[name].pid) in {row.split()[0] for row in rows}


def test_metrics_have_memory_and_processor_time(ctr: Ctr) -> None:
    name = ctr.run_detached("sleep", "1000")
    text = ctr.call("task", "metrics", name).check().text
    assert "memory" in text
    assert "cpu" in text


def test_kill_of_a_finished_task_is_an_error_in_words(ctr: Ctr) -> None:
    name = ctr.run_detached("true")
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")
    result = ctr.kill(name)
    assert result.status != 0
    assert "not found" in result.error_text or "already finished" in result.error_text


def test_kill_all_reaches_every_process(ctr: Ctr) -> None:
    name = ctr.run_detached("sh", "-c", "sleep 999 & sleep 999 & wait")
    ctr.kill(name, "SIGKILL", "--all").check()
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")


def test_clock_of_the_guest_is_the_hosts_within_a_tenth_of_a_second(ctr: Ctr, tmp_path: Path) -> None:
    program = compile_static("clock", tmp_path)
    options = ("--rm", "--mount", f"type=bind,src={program},dst=/clock,options=bind:ro")
    lowest, highest = float("-inf"), float("inf")
    with ctr.background(*ctr.run_arguments(ctr.new_id(), ["/clock"], *options)) as client:
        for number in range(1, 21):
            before = time.time()
            client.write(b"\n")
            answer = client.expect(b"done-%d\n" % number)
            after = time.time()
            guest = float(answer.split()[-2])
            # Whatever the way there and back took, guest minus host is between these two.
            lowest, highest = max(lowest, guest - after), min(highest, guest - before)
        client.close_stdin()
        client.wait().check()
    assert lowest <= CLOCK_BOUND_S, f"The guest is at least {lowest:.3f} s ahead"
    assert highest >= -CLOCK_BOUND_S, f"The guest is at least {-highest:.3f} s behind"
