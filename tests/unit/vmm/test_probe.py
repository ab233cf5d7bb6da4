"""Which engine `auto` is, and what becomes of the answer."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.descriptors import open_descriptors
from vmm import VERSION, boot_cache
from vmm.config import EngineName
from vmm.engines import probe
from vmm.errors import EngineError
from vmm.log import Level, Log

pytestmark = pytest.mark.unit

LOG = Log(Level.ERROR)


class Host:
    """A host whose KVM is a file, and whose library answers as told."""

    def __init__(self, directory: Path) -> None:
        self.device = directory / "kvm"
        self.device.touch()
        self.cache = directory / "strato" / "engine.json"
        self.asked = 0
        self.answer = (True, "Runs")

    def probe(self, kvm_fd: int) -> tuple[bool, str]:
        assert Path(f"/proc/self/fd/{kvm_fd}").readlink() == self.device
        self.asked += 1
        return self.answer

    def verdict(self, *, anew: bool = False) -> tuple[EngineName, str]:
        found = probe.verdict(LOG, cache=self.cache, anew=anew)
        return found.engine, found.reason


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path)
    monkeypatch.setattr(probe, "KVM_DEVICE", made.device)
    monkeypatch.setattr("vmm.devices.probe", made.probe, raising=False)
    before = open_descriptors()
    yield made
    assert open_descriptors() <= before


def test_usable_kvm_is_asked_once_per_boot(host: Host) -> None:
    assert [host.verdict() for _ in range(3)] == [(EngineName.KVM, "Runs")] * 3
    assert host.asked == 1


def test_unusable_kvm_means_tcg_and_says_why(host: Host) -> None:
    host.answer = (False, "int3 is emulated")

    assert host.verdict() == (EngineName.TCG, "int3 is emulated")
    assert host.verdict() == (EngineName.TCG, "int3 is emulated")
    assert host.asked == 1


def test_asking_anew_replaces_what_is_known(host: Host) -> None:
    host.verdict()
    host.answer = (False, "Gone bad")

    assert host.verdict(anew=True) == (EngineName.TCG, "Gone bad")
    assert host.verdict() == (EngineName.TCG, "Gone bad")


def test_absent_device_is_tcg_without_asking_and_without_memory(host: Host) -> None:
    host.verdict()
    host.device.unlink()

    engine, reason = host.verdict()

    assert (engine, host.asked) == (EngineName.TCG, 1)
    assert "does not exist" in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"boot_id": "other"},
        {"version": "0.0.0"},
        {"kvm_usable": "yes"},
        {"kvm_usable": 1},
        {"reason": None},
        {"reason": ["Runs"]},
    ],
)
def test_what_is_not_of_this_boot_and_version_or_not_sound_is_not_trusted(
    host: Host, changes: dict[str, object]
) -> None:
    host.verdict()
    known = json.loads(host.cache.read_text())
    host.cache.write_text(json.dumps({**known, **changes}))

    assert host.verdict() == (EngineName.KVM, "Runs")
    assert host.asked == 2
    assert json.loads(host.cache.read_text()) == known


@pytest.mark.parametrize("content", ["", "[]", "nonsense", "[" * 5000])
def test_broken_memory_is_not_trusted(host: Host, content: str) -> None:
    host.cache.parent.mkdir()
    host.cache.write_text(content)

    assert host.verdict() == (EngineName.KVM, "Runs")
    assert boot_cache.read(host.cache)["version"] == VERSION


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give the file away")
def test_memory_of_another_user_is_not_trusted(host: Host) -> None:
    host.verdict()
    os.chown(host.cache, 12345, 12345)

    host.verdict()

    assert host.asked == 2


def test_engine_kvm_on_an_unusable_host_is_an_error_that_says_what_to_do(host: Host) -> None:
    host.answer = (False, "int3 is emulated")

    with pytest.raises(EngineError, match="int3 is emulated: set engine to tcg or auto"):
        probe.resolve(EngineName.KVM, LOG, cache=host.cache)
    assert probe.resolve(EngineName.TCG, LOG, cache=host.cache) is EngineName.TCG


def test_auto_is_kvm_where_it_is_usable(host: Host) -> None:
    assert probe.resolve(EngineName.AUTO, LOG, cache=host.cache) is EngineName.KVM


def test_kvm_that_was_proven_is_not_asked_again(host: Host) -> None:
    host.answer = (False, "int3 is emulated")

    assert probe.resolve(EngineName.KVM, LOG, proven=True, cache=host.cache) is EngineName.KVM
    assert host.asked == 0
