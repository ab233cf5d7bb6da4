"""Starting and reaping processes on the event loop."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.log import Level, Log
from vmm.loop import EventLoop
from vmm.processes import Process, ProcessTable

pytestmark = pytest.mark.unit

DEADLINE_S = 20.0


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def run_one(loop: EventLoop, script: str, act: Callable[[Process], None] = lambda _: None) -> Process:
    table = ProcessTable(loop, Log(Level.ERROR))
    process = table.spawn(["/bin/sh", "-c", script], name="sh", on_exit=lambda _: loop.stop())
    act(process)
    loop.call_later(DEADLINE_S, loop.stop)
    loop.run()
    assert table.living() == []
    return process


def test_exit_status_and_last_words_are_told(loop: EventLoop) -> None:
    process = run_one(loop, "echo trouble >&2; exit 3")

    assert process.status == 3
    assert process.describe_exit().endswith("ended with status 3; its last words: trouble")


def test_lines_that_are_written_in_pieces_are_logged_whole(loop: EventLoop) -> None:
    reading, writing = os.pipe()
    script = "for word in one two three; do printf '%s ' $word >&2; sleep 0.02; done; printf 'end\\nlast' >&2"
    table = ProcessTable(loop, Log(Level.DEBUG, writing))
    table.spawn(["/bin/sh", "-c", script], name="sh", on_exit=lambda _: loop.stop())
    loop.call_later(DEADLINE_S, loop.stop)

    loop.run()

    os.close(writing)
    with os.fdopen(reading) as log:
        said = [line for line in log.read().splitlines() if line.endswith("program=sh")]
    assert said == ["debug one two three end program=sh", "debug last program=sh"]


def test_last_words_are_bounded(loop: EventLoop) -> None:
    process = run_one(loop, "yes 0123456789 | head -c 300000 >&2; echo end >&2")

    assert len(process.stderr_tail) == 4096
    assert process.stderr_tail.endswith(b"end\n")


def test_death_by_signal_is_named(loop: EventLoop) -> None:
    process = run_one(loop, "exec sleep 1000", lambda process: process.signal(signal.SIGKILL))

    assert "was killed by SIGKILL" in process.describe_exit()
    process.signal(signal.SIGKILL)  # its pid may be somebody else's by now: nothing is sent


def test_passed_descriptor_keeps_its_number_and_others_are_closed(loop: EventLoop, tmp_path: Path) -> None:
    passed = os.open(tmp_path, os.O_RDONLY)
    hidden = os.open(tmp_path, os.O_RDONLY)
    table = ProcessTable(loop, Log(Level.ERROR))
    script = f"test -e /proc/self/fd/{passed} && test ! -e /proc/self/fd/{hidden}"

    process = table.spawn(
        ["/bin/sh", "-c", script], name="sh", pass_fds=[passed], on_exit=lambda _: loop.stop()
    )
    loop.call_later(DEADLINE_S, loop.stop)
    loop.run()

    os.close(passed)
    os.close(hidden)
    assert process.status == 0


def test_absent_program_is_a_host_error_that_names_it(loop: EventLoop) -> None:
    table = ProcessTable(loop, Log(Level.ERROR))

    with pytest.raises(HostError, match="/nonexistent/program"):
        table.spawn(["/nonexistent/program"], name="x", on_exit=lambda _: None)

    assert table.living() == []
