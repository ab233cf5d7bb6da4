"""The content-addressed cache: keys, atomicity, locking, pruning."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from tools.cache import Cache, default_root, digest_files, key_of

pytestmark = pytest.mark.unit

_INPUTS = {"version": "1"}


class _BuildFailedError(Exception):
    """Raised by the builders of these tests."""


def _write_product(output: Path) -> None:
    (output / "product").write_text("whole")


def _must_not_build(_: Path) -> None:
    raise AssertionError("built although the entry was there")


def test_key_depends_on_every_input_and_not_on_order() -> None:
    assert key_of({"a": "1", "b": "2"}) == key_of({"b": "2", "a": "1"})
    assert key_of({"a": "1", "b": "2"}) != key_of({"a": "1", "b": "3"})
    assert key_of({"a": "1", "b": "2"}) != key_of({"a": "12", "b": ""})
    assert len(key_of({})) == 16


def test_digest_depends_on_names_contents_and_execute_bits(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_files([tmp_path / "a"], tmp_path)
    (tmp_path / "a").chmod(0o755)
    executable = digest_files([tmp_path / "a"], tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = digest_files([tmp_path / "b"], tmp_path)
    (tmp_path / "b").write_text("2")
    changed = digest_files([tmp_path / "b"], tmp_path)

    assert len({first, executable, renamed, changed}) == 4


def test_entry_is_built_once_and_says_of_what(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    entry = cache.entry("thing", _INPUTS, _write_product)
    again = cache.entry("thing", _INPUTS, _must_not_build)

    assert entry == again == tmp_path / "thing" / key_of(_INPUTS)
    assert (entry / "product").read_text() == "whole"
    assert json.loads((entry / "inputs.json").read_text()) == _INPUTS


def test_entry_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(output: Path) -> None:
        (output / "half").write_text("")
        raise _BuildFailedError

    cache = Cache(tmp_path)
    with pytest.raises(_BuildFailedError):
        cache.entry("thing", _INPUTS, fail)

    assert list((tmp_path / "thing").iterdir()) == []
    assert (cache.entry("thing", _INPUTS, _write_product) / "product").exists()


def test_entry_left_over_of_a_killed_build_is_removed_by_the_next(tmp_path: Path) -> None:
    left_over = tmp_path / "thing" / f".{key_of(_INPUTS)}-killed"
    left_over.mkdir(parents=True)

    Cache(tmp_path).entry("thing", _INPUTS, _write_product)

    assert not left_over.exists()


def _count_builds(root: Path, log: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    def build(output: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        _write_product(output)

    barrier.wait(30)
    Cache(root).entry("thing", _INPUTS, build)


def test_entry_wanted_by_two_processes_at_once_is_built_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=_count_builds, args=(tmp_path / "cache", tmp_path / "log", barrier))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_workspace_keeps_its_files_between_uses(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.workspace("cargo", _INPUTS) as first:
        (first / "object").write_text("")
    with cache.workspace("cargo", _INPUTS) as second:
        assert (second / "object").exists()


def test_prune_removes_what_was_long_unused_and_spares_the_rest(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old = cache.entry("thing", {"version": "old"}, _write_product)
    new = cache.entry("thing", {"version": "new"}, _write_product)
    with cache.workspace("cargo", _INPUTS) as workspace:
        pass
    os.utime(old, (1_000_000, 1_000_000))
    os.utime(workspace, (1_000_000, 1_000_000))

    removed = cache.prune(24 * 3600)

    assert {info.path for info in removed} == {old, workspace}
    assert [info.path for info in cache.list()] == [new]
    assert cache.list()[0].name == "thing"


def test_default_root_follows_xdg_unless_it_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    absolute = default_root()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")

    assert absolute == Path("/somewhere/strato")
    assert default_root() == Path("/home/someone/.cache/strato")
