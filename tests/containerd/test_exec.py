"""Further processes in a running container."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr

pytestmark = pytest.mark.containerd
PARALLEL = 50


@pytest.fixture
def container(ctr: Ctr) -> str:
    """A running container that does nothing."""
    return ctr.run_detached("sleep", "1000")


def test_exec_prints_output_of_both_streams(ctr: Ctr, container: str) -> None:
    result = ctr.exec(container, "sh", "-c", "echo out; echo err >&2").check()
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_exec_reads_standard_input_to_its_end(ctr: Ctr, container: str) -> None:
    assert ctr.exec(container, "wc", "-c", stdin=b"x" * 100_000).check().text == "100000"


def test_exec_exit_status_is_relayed(ctr: Ctr, container: str) -> None:
    wanted = [0, 1, 42, 127, 255]
    assert [ctr.exec(container, "sh", "-c", f"exit {status}").status for status in wanted] == wanted


def test_exec_death_by_signal_is_relayed_as_128_plus_number(ctr: Ctr, container: str) -> None:
    signals = [1, 2, 6, 9, 10, 11, 13, 15]
    answers = [ctr.exec(container, "sh", "-c", f"kill -{number} $$").status for number in signals]
    assert answers == [128 + number for number in signals]


def test_exec_shares_the_namespaces_of_init(ctr: Ctr, container: str) -> None:
    names = "for n in ipc mnt net pid uts; do readlink /proc/{}/ns/$n; done"
    own = ctr.exec(container, "sh", "-c", names.format("self")).check().text
    init = ctr.exec(container, "sh", "-c", names.format("1")).check().text
    assert own == init


def test_exec_with_cwd_and_user_gets_them(ctr: Ctr, container: str) -> None:
    options = ("--cwd", "/tmp", "--user", "1000")
    result = ctr.exec(container, "sh", "-c", "pwd; id -u", options=options).check()
    assert result.text.splitlines() == ["/tmp", "1000"]


def test_exec_of_a_missing_program_fails_in_words_and_harms_nobody(ctr: Ctr, container: str) -> None:
    result = ctr.exec(container, "/no/such/program")
    assert result.status != 0
    assert "no such file" in result.error_text or "executable file not found" in result.error_text
    assert ctr.exec(container, "echo", "alive").check().text == "alive"


def test_exec_id_in_use_is_refused(ctr: Ctr, container: str) -> None:
    words = ("task", "exec", "--exec-id", "same", container)
    with ctr.background(*words, "sh", "-c", "echo ready; sleep 1000") as first:
        first.expect(b"ready")
        result = ctr.call(*words, "true")
        assert result.status != 0
        assert "already" in result.error_text
        ctr.kill(container, "SIGKILL", "--exec-id", "same").check()
        assert first.wait(timeout_s=20).status == 137


def test_exec_that_leaves_a_background_child_on_its_pipe_still_exits(ctr: Ctr, container: str) -> None:
    result = ctr.exec(container, "sh", "-c", "sleep 500 & echo said; exit 5", timeout_s=25)
    assert (result.status, result.stdout) == (5, b"said\n")


def test_exec_dies_with_init(ctr: Ctr, container: str) -> None:
    words = ("task", "exec", "--exec-id", "e1", container, "sh", "-c", "echo ready; sleep 1000")
    with ctr.background(*words) as client:
        client.expect(b"ready")
        ctr.kill(container).check()
        assert client.wait(timeout_s=20).status == 137


def test_exec_after_init_ended_is_refused(ctr: Ctr, container: str) -> None:
    ctr.kill(container).check()
    eventually(lambda: ctr.tasks()[container].status == "STOPPED", "task stopped")
    result = ctr.exec(container, "true")
    assert result.status != 0
    assert result.error_text


def test_fifty_execs_in_parallel_keep_their_streams_and_statuses_apart(ctr: Ctr, container: str) -> None:
    def one(number: int) -> tuple[int, bytes]:
        result = ctr.exec(container, "sh", "-c", f"cat; exit {number}", stdin=f"input {number}".encode())
        return result.status, result.stdout

    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(one, range(PARALLEL)))
    assert answers == [(number, f"input {number}".encode()) for number in range(PARALLEL)]


def test_detached_exec_shows_up_with_its_id_and_can_be_killed(ctr: Ctr, container: str) -> None:
    ctr.call("task", "exec", "--detach", "--exec-id", "d1", container, "sleep", "999").check()
    assert "d1" in ctr.call("task", "ps", container).check().text
    ctr.kill(container, "SIGKILL", "--exec-id", "d1").check()
    eventually(lambda: "d1" not in ctr.call("task", "ps", container).check().text, "exec gone")
