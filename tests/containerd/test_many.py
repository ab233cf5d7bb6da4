"""Many containers, one after another and side by side; nothing grows and nothing is left."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.framework.ctr import Ctr

pytestmark = pytest.mark.containerd
SERIAL = 50
PARALLEL = 8


def test_fifty_containers_one_after_another(ctr: Ctr) -> None:
    for number in range(SERIAL):
        result = ctr.run("sh", "-c", f"echo number {number}; exit {number}")
        assert (result.status, result.text) == (number, f"number {number}"), result.error_text


def test_eight_containers_at_once(ctr: Ctr) -> None:
    def one(number: int) -> tuple[int, str, str]:
        result = ctr.run("sh", "-c", f"echo number {number}; exit {number}", timeout_s=120)
        return result.status, result.text, result.error_text

    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(one, range(PARALLEL)))
    assert answers == [(number, f"number {number}", "") for number in range(PARALLEL)], answers


def test_eight_containers_that_live_side_by_side(ctr: Ctr) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        names = list(pool.map(lambda _: ctr.run_detached("sleep", "1000", timeout_s=120), range(PARALLEL)))
    assert {task.status for task in ctr.tasks().values()} == {"RUNNING"}
    assert len({task.pid for task in ctr.tasks().values()}) == PARALLEL
    with ThreadPoolExecutor(PARALLEL) as pool:
        texts = list(pool.map(lambda name: ctr.exec(name, "echo", name).check().text, names))
        list(pool.map(ctr.remove, names))
    assert texts == names
    assert ctr.tasks() == {}
