"""The bundle's `log` fifo: lines of the shim and of strato-vmm at containerd's level; a fifo that nobody
reads harms nobody.
"""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.daemons import TestDaemon
from tests.framework.shim_process import ShimProcess
from tests.framework.specs import SpecFactory

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]

by_ttrpc = pytest.mark.not_on("-grpc$", reason="it calls the shim by ttrpc itself")

# logrus' text format, which containerd copies to its own log.
LINE = re.compile(r'^time="\S+" level=(debug|info|warning|error|fatal) msg=')
OF_THE_SHIM, OF_THE_VMM = 'msg="guest said hello"', 'msg="VM started '


@pytest.fixture
def make_shim(daemon: TestDaemon, tmp_path: Path) -> Callable[[], ShimProcess]:
    """Makes the shim of a container that sleeps; it is not started yet."""

    specs = SpecFactory(daemon.ctr, tmp_path)

    def make() -> ShimProcess:
        name = daemon.ctr.new_id("log")
        return ShimProcess(daemon, name, specs.spec(name, ["sleep", "1000"]), tmp_path)

    return make


def live(shim: ShimProcess) -> None:
    """Takes a container through its life."""
    shim.create()
    shim.start_task()
    shim.kill()
    assert shim.wait().exit_status == 137
    shim.delete()


def levels(text: str) -> set[str]:
    """The levels of all lines; raises AssertionError at a line of another form."""
    found = set()
    for line in text.splitlines():
        match = LINE.match(line)
        assert match, line
        found.add(match[1])
    return found


def test_lines_of_shim_and_vmm_reach_the_daemons_log(daemon: TestDaemon) -> None:
    name = daemon.ctr.run_detached("sleep", "1000")

    def complete() -> bool:
        text = daemon.containerd.log_path.read_text(errors="replace")
        return OF_THE_SHIM in text and OF_THE_VMM in text and name in text

    eventually(complete, "the daemon has copied the fifo")


@by_ttrpc
def test_level_of_the_daemon_is_the_level_of_all(
    daemon: TestDaemon, make_shim: Callable[[], ShimProcess]
) -> None:
    daemon.write_config(shim={"log_level": "info"})
    with make_shim() as shim:
        shim.start()
        live(shim)
        text = shim.log()
        assert OF_THE_VMM in text
        assert "debug" not in levels(text)
    with make_shim() as shim:
        shim.start(flags=["-debug"])
        live(shim)
        text = shim.log()
        assert OF_THE_SHIM in text
        assert 'msg="state old=prelaunch' in text
        assert "debug" in levels(text)


@by_ttrpc
@pytest.mark.parametrize("level", ["warning", "error"])
def test_level_of_the_configuration_quietens_both(
    daemon: TestDaemon, make_shim: Callable[[], ShimProcess], level: str
) -> None:
    daemon.write_config(shim={"log_level": level})
    with make_shim() as shim:
        shim.start()
        live(shim)
        text = shim.log()
    assert OF_THE_VMM not in text
    assert levels(text) <= {"warning", "error"}


@by_ttrpc
def test_full_log_harms_nobody(make_shim: Callable[[], ShimProcess]) -> None:
    with make_shim() as shim:
        filled = fill(shim.bundle / "log")
        shim.start(flags=["-debug"])
        live(shim)
        assert len(shim.log()) == filled


@by_ttrpc
def test_log_without_reader_harms_nobody(make_shim: Callable[[], ShimProcess]) -> None:
    with make_shim() as shim:
        shim.start(flags=["-debug"])
        shim.create()
        shim.close_log()
        shim.start_task()
        shim.kill()
        assert shim.wait().exit_status == 137
        shim.delete()


def fill(fifo: Path) -> int:
    """Fills a fifo that somebody has open; how much it holds."""
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    written = 0
    try:
        for size in (fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ), 1):
            try:
                while True:
                    written += os.write(descriptor, b"x" * size)
            except BlockingIOError:
                continue
    finally:
        os.close(descriptor)
    return written
