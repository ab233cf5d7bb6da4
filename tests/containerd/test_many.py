"""Many containers, one after another and side by side; nothing grows and nothing is left."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.framework.ctr import Ctr
from tests.framework.daemons import TestDaemon

pytestmark = pytest.mark.containerd
SERIAL = 50
PARALLEL = 8
PATIENCE_S = 240


# With gRPC containerd gives up a healthy shim too often for fifty in a row (docs/limitations.md).
@pytest.mark.not_on("-grpc$", reason="containerd's race")
def test_fifty_containers_one_after_another(ctr: Ctr) -> None:
    for number in range(SERIAL):
        result = ctr.run("sh", "-c", f"echo number {number}; exit {number}")
        assert (result.status, result.text) == (number, f"number {number}"), result.error_text


def test_eight_containers_at_once(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    # Eight emulated guests want two seconds of processor time each on a machine that may do other work too.
    daemon.write_config(shim={"create_timeout_s": PATIENCE_S})

    def one(number: int) -> tuple[int, str, str]:
        result = ctr.run("sh", "-c", f"echo number {number}; exit {number}", timeout_s=PATIENCE_S + 30)
        return result.status, result.text, result.error_text

    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(one, range(PARALLEL)))
    assert answers == [(number, f"number {number}", "") for number in range(PARALLEL)], answers


def test_eight_containers_that_live_side_by_side(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    daemon.write_config(shim={"create_timeout_s": PATIENCE_S})

    def start(_: int) -> str:
        return ctr.run_detached("sleep", "1000", timeout_s=PATIENCE_S + 30)

    with ThreadPoolExecutor(PARALLEL) as pool:
        names = list(pool.map(start, range(PARALLEL)))
    assert {task.status for task in ctr.tasks().values()} == {"RUNNING"}
    assert len({task.pid for task in ctr.tasks().values()}) == PARALLEL
    with ThreadPoolExecutor(PARALLEL) as pool:
        texts = list(pool.map(lambda name: ctr.exec(name, "echo", name).check().text, names))
        list(pool.map(ctr.remove, names))
    assert texts == names
    assert ctr.tasks() == {}
