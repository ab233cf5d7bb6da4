"""What a strato-vmm is told because it could not find it out."""

from pathlib import Path
from typing import Any

import pytest

from vmm.engine_name import EngineName
from vmm.errors import EngineError
from vmm.jail.facts import completed
from vmm.log import Level, Log

pytestmark = pytest.mark.unit

LOG = Log(Level.ERROR)
SMALLEST: dict[str, Any] = {"name": "n", "runtime_dir": "/run/x", "boot": {"kernel": "/k"}}


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.engines.host_clock.tsc_khz", lambda _: 2_500_000)
    monkeypatch.setattr("vmm.paths.qemu", lambda: Path("/found/qemu"))


def choose(monkeypatch: pytest.MonkeyPatch, engine: EngineName) -> None:
    monkeypatch.setattr("vmm.engines.probe.resolve", lambda wanted, log: engine)


def test_tcg_is_told_of_its_clock_and_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, EngineName.TCG)

    document = completed({**SMALLEST, "engine": "auto", "cpu": {"count": 2}}, LOG)

    assert document["engine"] == "tcg"
    assert document["cpu"] == {"count": 2, "tsc_khz": 2_500_000}
    assert document["programs"] == {"qemu": "/found/qemu"}


def test_kvm_is_told_that_it_works_and_nothing_of_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, EngineName.KVM)

    document = completed(SMALLEST, LOG)

    assert (document["engine"], document["cpu"], document["programs"]) == ("kvm", {"kvm_proven": True}, {})


def test_what_the_configuration_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, EngineName.TCG)
    asked = {**SMALLEST, "cpu": {"tsc_khz": 1_000_000}, "programs": {"qemu": "/mine"}}

    document = completed(asked, LOG)

    assert document == {**asked, "engine": "tcg"}


def test_engine_that_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: EngineName, log: Log) -> EngineName:
        raise EngineError(f"Engine {wanted} cannot run here")

    monkeypatch.setattr("vmm.engines.probe.resolve", refuse)

    with pytest.raises(EngineError, match="Engine kvm cannot run here"):
        completed({**SMALLEST, "engine": "kvm"}, LOG)
