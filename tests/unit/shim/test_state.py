"""state.json and the lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import state

pytestmark = pytest.mark.unit


def test_save_then_load_gives_the_same(tmp_path: Path) -> None:
    file = state.StateFile(tmp_path)
    file.data["id"] = "c1"

    file.save()

    assert state.load(tmp_path) == file.data
    assert (file.data["version"], file.data["id"]) == (1, "c1")


def test_save_failure_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = state.StateFile(tmp_path)
    file.data["id"] = "old"
    file.save()
    file.data["id"] = "new"

    def fail(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fail)
        with pytest.raises(OSError, match="No space"):
            file.save()

    assert state.load(tmp_path)["id"] == "old"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}'])
def test_load_anything_else_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE_NAME).write_text(text)

    assert state.load(tmp_path) == {}


def test_load_without_file_is_empty(tmp_path: Path) -> None:
    assert state.load(tmp_path) == {}


def test_lock_second_holder_gets_nothing_until_the_first_ends(tmp_path: Path) -> None:
    first = state.lock(tmp_path)
    assert first is not None

    second = state.lock(tmp_path)
    os.close(first)
    third = state.lock(tmp_path)

    assert second is None
    assert third is not None
    os.close(third)


def test_start_time_of_this_process_is_stable_and_of_none_is_zero() -> None:
    assert state.start_time_of(os.getpid()) == state.start_time_of(os.getpid()) > 0
    assert state.start_time_of(0) == 0
