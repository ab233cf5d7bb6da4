"""Standard streams: nothing lost, nothing mixed, and no client can hold a container up."""

import hashlib
import os
import random
import time
from pathlib import Path

import pytest

from tests.framework.command import Background, eventually
from tests.framework.ctr import IMAGE, Ctr

pytestmark = pytest.mark.containerd

MIB = 1 << 20
# Delete waits at most this long for readers (facts: containerd's own shims wait ten seconds), plus room for a
# slow machine.
DELETE_BOUND_S = 25.0


def test_twenty_mebibytes_through_cat_come_back_unchanged(ctr: Ctr) -> None:
    data = random.Random(1).randbytes(20 * MIB)
    result = ctr.run("cat", stdin=data, timeout_s=120).check()
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_burst_of_eight_mebibytes_before_exit_is_complete(ctr: Ctr) -> None:
    line = b"0123456789abcdef" * 64
    script = f"exec yes {line.decode()} | head -c {8 * MIB}"
    result = ctr.run("sh", "-c", script, timeout_s=120).check()
    expected = ((line + b"\n") * (8 * MIB // len(line)))[: 8 * MIB]
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(expected).digest()


def test_bursts_on_both_streams_are_complete(ctr: Ctr) -> None:
    script = f"head -c {2 * MIB} /dev/zero & head -c {2 * MIB} /dev/zero >&2; wait; exit 9"
    result = ctr.run("sh", "-c", script, timeout_s=120)
    assert (result.status, result.stdout.strip(b"\0"), result.stderr.strip(b"\0")) == (9, b"", b"")
    assert (len(result.stdout), len(result.stderr)) == (2 * MIB, 2 * MIB)


def test_end_of_input_takes_effect_after_the_last_byte(ctr: Ctr) -> None:
    data = random.Random(2).randbytes(3 * MIB + 17)
    result = ctr.run("sh", "-c", "wc -c; echo after", stdin=data).check()
    assert result.text.splitlines() == [str(len(data)), "after"]


def test_input_that_nobody_reads_does_not_hold_up_the_exit(ctr: Ctr) -> None:
    result = ctr.run("sh", "-c", "exit 4", stdin=b"x" * (4 * MIB), timeout_s=40)
    assert result.status == 4


def test_null_io_container_reads_end_of_file_and_writes_to_nowhere(ctr: Ctr) -> None:
    name = ctr.run_detached("sh", "-c", "cat; head -c 10000000 /dev/zero; exit 6")
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "task stopped")
    assert "exit code 6" in ctr.call("task", "delete", name).check().error_text


def test_unread_output_blocks_neither_exit_nor_delete(ctr: Ctr, tmp_path: Path) -> None:
    # More than the client's fifo holds (64 KiB), less than fifo and the process's own pipe together.
    name = ctr.new_id()
    words = ctr.run_arguments(
        name, ["sh", "-c", "head -c 100000 /dev/zero; exit 3"], "--detach", "--fifo-dir", tmp_path
    )
    ctr.call(*words).check()
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "exit seen although nobody reads")
    begin = time.monotonic()
    assert "exit code 3" in ctr.call("task", "delete", name, timeout_s=DELETE_BOUND_S).check().error_text
    assert time.monotonic() - begin < DELETE_BOUND_S


def test_input_survives_detach_and_attach(ctr: Ctr, tmp_path: Path) -> None:
    name = ctr.new_id()
    ctr.call(*ctr.run_arguments(name, ["cat"], "--detach", "--fifo-dir", tmp_path)).check()
    with ctr.background("task", "attach", name) as first:
        first.write(b"one\n")
        first.expect(b"one\n")
    assert ctr.tasks()[name].status == "RUNNING"
    with ctr.background("task", "attach", name) as second:
        second.write(b"two\n")
        assert second.expect(b"two\n") == b"two\n"
        ctr.kill(name).check()
        second.wait(timeout_s=20)


def test_client_reading_an_idle_container_can_be_killed(ctr: Ctr) -> None:
    with ctr.background(*ctr.run_arguments(ctr.new_id(), ["sh", "-c", "echo ready; sleep 1000"])) as client:
        client.expect(b"ready")
        os.kill(client.pid, 9)
        assert client.wait(timeout_s=5).status == -9


def test_plain_reader_of_an_idle_fifo_can_be_killed(ctr: Ctr, tmp_path: Path) -> None:
    name = ctr.new_id()
    # The detaching client reads too for a moment, hence the pause before the line.
    script = "sleep 2; echo ready; sleep 1000"
    ctr.call(*ctr.run_arguments(name, ["sh", "-c", script], "--detach", "--fifo-dir", tmp_path)).check()
    (fifo,) = tmp_path.rglob("*-stdout")
    with Background(["cat", fifo]) as reader:
        reader.expect(b"ready\n")
        reader.send_signal(9)
        assert reader.wait(timeout_s=5).status == -9


def test_binary_data_is_not_translated(ctr: Ctr) -> None:
    # `ctr run` forgets an end of input that it sees before the task exists, so the end comes after the echo.
    data = bytes(range(256)) * 16
    with ctr.background(*ctr.run_arguments(ctr.new_id(), ["cat"], "--rm")) as client:
        client.write(data)
        client.expect(data)
        client.close_stdin()
        assert client.wait().stdout == data


def test_image_and_container_may_have_no_input_at_all(ctr: Ctr) -> None:
    words = ["run", "--rm", "--runtime", ctr.runtime, "--null-io", IMAGE, ctr.new_id(), "sh", "-c", "read x"]
    assert ctr.call(*words).status == 1
