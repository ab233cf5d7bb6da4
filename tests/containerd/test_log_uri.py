"""Output to files and to logger programs instead of fifos."""

import stat
import sys
import textwrap
from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr

pytestmark = pytest.mark.containerd

# containerd's protocol for binary loggers: descriptor 3 is stdout, 4 stderr, closing 5 says ready.
LOGGER = """\
    #!{python} -IS
    import os, sys, threading
    target = sys.argv[sys.argv.index("target") + 1]
    with open(target + ".env", "w") as out:
        out.write(os.environ["CONTAINER_NAMESPACE"] + "/" + os.environ["CONTAINER_ID"])
    def copy(descriptor, name):
        with open(target + name, "ab", buffering=0) as out:
            while data := os.read(descriptor, 65536):
                out.write(data)
    threads = [threading.Thread(target=copy, args=pair) for pair in ((3, ".out"), (4, ".err"))]
    for thread in threads:
        thread.start()
    os.close(5)
    for thread in threads:
        thread.join()
"""


def run_to_end(ctr: Ctr, script: str, uri: str) -> str:
    """Runs a detached container with its output at `uri`, waits for its exit, deletes the task."""
    name = ctr.new_id()
    ctr.call(*ctr.run_arguments(name, ["sh", "-c", script], "--detach", "--log-uri", uri)).check()
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")
    ctr.call("task", "delete", name).check()
    return name


def test_file_uri_receives_both_streams(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    run_to_end(ctr, "echo out; echo err >&2", f"file://{log}")
    assert sorted(log.read_text().splitlines()) == ["err", "out"]


def test_file_uri_appends_to_what_is_there(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    run_to_end(ctr, "echo after", f"file://{log}")
    assert log.read_text() == "before\nafter\n"


def test_file_uri_receives_a_burst_completely(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    run_to_end(ctr, "head -c 8388608 /dev/zero", f"file://{log}")
    assert log.stat().st_size == 8388608


def test_binary_uri_starts_the_logger_and_feeds_it(ctr: Ctr, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(textwrap.dedent(LOGGER).format(python=sys.executable))
    logger.chmod(stat.S_IRWXU)
    target = tmp_path / "log"
    name = run_to_end(ctr, "echo out; echo err >&2", f"binary://{logger}?target={target}")
    eventually(lambda: Path(f"{target}.err").read_text() == "err\n", "logger wrote the last stream")
    assert Path(f"{target}.out").read_text() == "out\n"
    assert Path(f"{target}.env").read_text() == f"{ctr.namespace}/{name}"


def test_binary_uri_of_a_missing_logger_fails_in_words(ctr: Ctr, tmp_path: Path) -> None:
    uri = f"binary://{tmp_path}/missing"
    words = ctr.run_arguments(ctr.new_id(), ["true"], "--detach", "--log-uri", uri)
    result = ctr.call(*words, timeout_s=40)
    assert result.status != 0
    assert "missing" in result.error_text
