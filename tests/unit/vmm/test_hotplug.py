"""Devices that come and go: names, slots, and who owns which descriptor."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.descriptors import open_descriptors
from tests.unit.vmm.test_boards import DISKS_ONLY, KVM, TCG, plan
from vmm.boards.base import DeviceKind, DevicePlan
from vmm.config import DriveCache, DriveConfig, NetConfig, ShareConfig
from vmm.engines.kvm import KvmEngine
from vmm.errors import ConfigError, EngineError, HostError, QmpCommandError
from vmm.hotplug import DiskNode, Hotplug, TapNode

pytestmark = pytest.mark.unit

MAC = "02:53:54:52:00:09"


class SpareSlots(KvmEngine):
    """An engine that only takes note of what is plugged."""

    def __init__(self) -> None:
        self.plugged: dict[str, tuple[DevicePlan, int | None]] = {}
        self.broken = False

    def plug(self, device: DevicePlan, *, fd: int | None) -> None:
        if isinstance(device.source, NetConfig) and device.source.tap_fd is not None:
            os.close(device.source.tap_fd)  # as the maker of devices does
        if self.broken:
            raise HostError("Broken")
        self.plugged[device.id] = (device, fd)

    def unplug(self, device: DevicePlan) -> None:
        del self.plugged[device.id]


@pytest.fixture
def engine() -> SpareSlots:
    return SpareSlots()


@pytest.fixture
def hotplug(engine: SpareSlots) -> Iterator[Hotplug]:
    made = Hotplug(plan(replace(DISKS_ONLY, spare_slots=2)), engine)
    yield made
    made.close()


def open_fd() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def disk(name: str = "n1") -> DiskNode:
    return DiskNode(name=name, path=Path("/disk"), fd=open_fd(), readonly=True, cache=DriveCache.DIRECT)


def test_a_disk_comes_into_the_first_spare_slot_as_its_node_says(
    hotplug: Hotplug, engine: SpareSlots
) -> None:
    node = disk()
    hotplug.add_disk(node)
    hotplug.add_drive("late", "n1", serial="s", slot=None)

    device, fd = engine.plugged["late"]
    assert (device.slot, device.kind, fd) == (3, DeviceKind.BLOCK, node.fd)
    assert device.source == DriveConfig(
        id="late", path=Path("/disk"), readonly=True, serial="s", cache=DriveCache.DIRECT
    )


def test_slots_are_told_by_their_names_in_the_guest(hotplug: Hotplug) -> None:
    hotplug.add_share("late", ShareConfig(tag="t"), slot=4)

    assert hotplug.slots()[2:] == [
        {"slot": 2, "guest-device": "LNRO0005:02", "device": "d1", "kind": "block"},
        {"slot": 3, "guest-device": "LNRO0005:03"},
        {"slot": 4, "guest-device": "LNRO0005:04", "device": "late", "kind": "fs"},
    ]


def test_a_slot_that_is_taken_or_absent_and_one_too_many_are_refused(hotplug: Hotplug) -> None:
    for slot in (0, 5):
        with pytest.raises(QmpCommandError, match=f"virtio-mmio-bus.{slot}"):
            hotplug.add_share("late", ShareConfig(tag="t"), slot=slot)
    for index in range(2):
        hotplug.add_share(f"late{index}", ShareConfig(tag=f"t{index}"), slot=None)
    with pytest.raises(QmpCommandError, match="spare_slots"):
        hotplug.add_share("late2", ShareConfig(tag="t2"), slot=None)


def test_a_node_in_use_stays_until_its_device_is_gone(hotplug: Hotplug) -> None:
    node = disk()
    hotplug.add_disk(node)
    hotplug.add_drive("late", "n1", serial=None, slot=None)

    with pytest.raises(QmpCommandError, match="in use by device late"):
        hotplug.remove_disk("n1")
    with pytest.raises(QmpCommandError, match="in use by device late"):
        hotplug.add_drive("later", "n1", serial=None, slot=None)
    hotplug.remove("late")
    hotplug.remove_disk("n1")
    assert not is_open(node.fd)


def test_a_slot_is_free_again_after_its_device_has_gone(hotplug: Hotplug, engine: SpareSlots) -> None:
    for _ in range(3):
        hotplug.add_share("late", ShareConfig(tag="t"), slot=None)
        assert engine.plugged["late"][0].slot == 3
        hotplug.remove("late")


def test_a_tap_outlives_its_device_and_ends_with_its_node(hotplug: Hotplug, engine: SpareSlots) -> None:
    fd = open_fd()
    hotplug.add_tap(TapNode(name="t1", fd=fd, tap_name=None))
    hotplug.add_net("nic", "t1", mac=MAC, mtu=1400, slot=None)
    source = engine.plugged["nic"][0].source
    assert isinstance(source, NetConfig)
    assert source.tap_fd != fd
    hotplug.remove("nic")
    assert is_open(fd)
    hotplug.remove_tap("t1")
    assert not is_open(fd)


def test_a_device_that_cannot_be_made_leaves_no_descriptor_and_no_name(
    hotplug: Hotplug, engine: SpareSlots
) -> None:
    hotplug.add_tap(TapNode(name="t1", fd=open_fd(), tap_name=None))
    before = open_descriptors()
    engine.broken = True
    with pytest.raises(HostError):
        hotplug.add_net("nic", "t1", mac=MAC, mtu=None, slot=None)
    with pytest.raises(ConfigError, match="mac"):
        hotplug.add_net("nic", "t1", mac="x", mtu=None, slot=None)

    assert open_descriptors() <= before
    engine.broken = False
    hotplug.add_net("nic", "t1", mac=MAC, mtu=None, slot=None)


def test_names_are_unique_and_devices_of_the_configuration_stay(hotplug: Hotplug) -> None:
    hotplug.add_share("late", ShareConfig(tag="t"), slot=None)

    for name in ("late", "d0", "console"):
        with pytest.raises(QmpCommandError, match="Duplicate device ID"):
            hotplug.add_share(name, ShareConfig(tag="other"), slot=None)
    with pytest.raises(QmpCommandError, match="Tag 't'"):
        hotplug.add_share("other", ShareConfig(tag="t"), slot=None)
    with pytest.raises(QmpCommandError, match="from the start"):
        hotplug.remove("d0")
    with pytest.raises(QmpCommandError, match="not found"):
        hotplug.remove("nobody")


def test_a_refused_node_is_closed(hotplug: Hotplug) -> None:
    hotplug.add_disk(disk())
    second, third = disk(), disk("d0")
    for node in (second, third):
        with pytest.raises(QmpCommandError, match="Duplicate nodes"):
            hotplug.add_disk(node)
    assert not is_open(second.fd)
    assert not is_open(third.fd)


def test_descriptors_in_sets_are_opened_by_path_until_they_are_removed(hotplug: Hotplug) -> None:
    answer = hotplug.add_fd(open_fd(), None)
    path = Path(f"/dev/fdset/{answer['fdset-id']}")

    copy = hotplug.open_in_fdset(path)
    assert copy is not None
    os.close(copy)
    assert hotplug.open_in_fdset(Path("/dev/null")) is None
    refused = open_fd()
    with pytest.raises(QmpCommandError, match="fdset-id"):
        hotplug.add_fd(refused, answer["fdset-id"])
    assert not is_open(refused)
    hotplug.remove_fd(answer["fdset-id"])
    assert not is_open(answer["fd"])
    with pytest.raises(QmpCommandError, match="no such set"):
        hotplug.open_in_fdset(path)


def test_an_engine_with_a_layout_of_its_own_has_nothing_to_plug_into(engine: SpareSlots) -> None:
    with pytest.raises(EngineError, match="cannot add or remove devices"):
        Hotplug(plan(DISKS_ONLY, TCG), engine)
    assert plan(DISKS_ONLY, KVM).layout is not None
