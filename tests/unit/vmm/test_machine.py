"""What the machine itself keeps of its devices, with an engine that only takes note."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.vmm.test_boards import DISKS_ONLY, plan
from tests.unit.vmm.test_hotplug import SpareSlots, disk
from vmm.config import JailConfig, LimitConfig
from vmm.errors import QmpCommandError
from vmm.log import Level, Log
from vmm.loop import EventLoop
from vmm.machine import Machine
from vmm.runstate import Trigger

pytestmark = pytest.mark.unit

CONFIG = replace(DISKS_ONLY, spare_slots=2, jail=JailConfig(enabled=False))
LIMIT = LimitConfig(bandwidth=1 << 20, operations=100)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that runs, whose engine and devices do nothing."""
    loop = EventLoop()
    made = Machine(CONFIG, loop=loop, log=Log(Level.ERROR), started_at=0)
    made._plan, made._engine = plan(CONFIG), SpareSlots()
    monkeypatch.setattr(made._devices, "set_drive_limit", lambda *_: None)
    made.observe(Trigger.STARTED, {})
    yield made
    made.hotplug("test").close()
    loop.close()


def limit_of(machine: Machine, device: str) -> LimitConfig:
    (drive,) = [drive for place, drive, _ in machine.drives() if place.id == device]
    return drive.limit


def test_limit_of_a_disk_is_told_until_it_is_taken_away(machine: Machine) -> None:
    hotplug = machine.hotplug("test")
    hotplug.add_disk(disk())
    hotplug.add_drive("late", "n1", serial=None, slot=None)
    machine.set_drive_limit("late", LIMIT)
    assert limit_of(machine, "late") == LIMIT

    machine.remove_device("late")
    hotplug.add_drive("late", "n1", serial=None, slot=None)

    assert limit_of(machine, "late") == LimitConfig()


def test_limit_of_a_disk_that_stays_is_told_on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    hotplug = machine.hotplug("test")
    hotplug.add_disk(disk())
    hotplug.add_drive("late", "n1", serial=None, slot=None)
    machine.set_drive_limit("late", LIMIT)
    monkeypatch.setattr(hotplug, "remove", refuse)

    with pytest.raises(QmpCommandError):
        machine.remove_device("late")

    assert limit_of(machine, "late") == LIMIT


def refuse(device_id: str) -> None:
    raise QmpCommandError("GenericError", f"The guest uses {device_id}")
