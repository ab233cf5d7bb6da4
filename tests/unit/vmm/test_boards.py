"""The microvm board: slots, addresses and command line."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from vmm.boards.base import DeviceKind, EngineTraits, MachinePlan, board
from vmm.boards.layout import MemoryRegion
from vmm.boards.microvm import MAX_SLOTS, ram
from vmm.config import (
    BalloonConfig,
    BoardName,
    BootConfig,
    DriveConfig,
    EngineName,
    MemoryConfig,
    NetConfig,
    RngConfig,
    SerialConfig,
    ShareConfig,
    VmConfig,
    VsockConfig,
)
from vmm.errors import ConfigError

pytestmark = pytest.mark.unit

GIB = 1 << 30

KVM = EngineTraits(
    engine=EngineName.KVM, max_slots=32, kernel_arguments=("engine=1",), own_layout=False, balloon=True
)
TCG = EngineTraits(
    engine=EngineName.TCG, max_slots=23, kernel_arguments=("engine=1",), own_layout=True, balloon=False
)


def drive(index: int) -> DriveConfig:
    return DriveConfig(id=f"d{index}", path=Path(f"/d{index}"))


CONFIG = VmConfig(
    name="vm",
    runtime_dir=Path("/run/vm"),
    boot=BootConfig(kernel=Path("/k"), cmdline="last=1"),
    drives=(drive(0), drive(1)),
    nets=(NetConfig(id="n0", tap_fd=5, mac="02:53:54:52:00:00", link_up=False),),
    vsock=VsockConfig(socket=Path("/run/vm/v")),
    shares=(ShareConfig(tag="t", directory=Path("/s")),),
)
DISKS_ONLY = replace(
    CONFIG, rng=RngConfig(enabled=False), balloon=BalloonConfig(enabled=False), vsock=None, shares=(), nets=()
)


def plan(config: VmConfig, engine: EngineTraits = KVM) -> MachinePlan:
    return board(BoardName.MICROVM).plan(config, engine)


def test_devices_fill_the_slots_in_the_documented_order() -> None:
    assert [(device.slot, device.kind, device.id) for device in plan(CONFIG).devices] == [
        (0, DeviceKind.CONSOLE, "console"),
        (1, DeviceKind.RNG, "rng"),
        (2, DeviceKind.VSOCK, "vsock"),
        (3, DeviceKind.BALLOON, "balloon"),
        (4, DeviceKind.FS, "fs0"),
        (5, DeviceKind.BLOCK, "d0"),
        (6, DeviceKind.BLOCK, "d1"),
        (7, DeviceKind.NET, "n0"),
    ]


def test_engine_without_a_balloon_wastes_no_slot() -> None:
    assert plan(CONFIG, TCG).devices[3].kind is DeviceKind.FS


def test_command_line_ends_with_engine_then_user_arguments() -> None:
    cmdline = plan(CONFIG).cmdline

    assert cmdline.startswith("console=hvc0 panic=-1")
    assert cmdline.endswith(" quiet engine=1 last=1")


def test_serial_port_is_heard_first_and_not_quiet() -> None:
    with_port = plan(replace(CONFIG, serial=SerialConfig(log=Path("/run/vm/serial"))))

    assert with_port.cmdline.startswith("earlyprintk=ttyS0 console=ttyS0 console=hvc0")
    assert "quiet" not in with_port.cmdline.split()
    assert with_port.layout is not None
    assert (with_port.layout.platform.serial_port, with_port.layout.platform.serial_gsi) == (0x3F8, 4)


def test_without_rng_the_slot_is_not_wasted() -> None:
    assert plan(replace(CONFIG, rng=RngConfig(enabled=False))).devices[1].kind is DeviceKind.VSOCK


@pytest.mark.parametrize(("engine", "slots"), [(KVM, 32), (TCG, 23)])
def test_as_many_devices_as_slots_are_planned_and_one_more_is_refused(
    engine: EngineTraits, slots: int
) -> None:
    fitting = replace(DISKS_ONLY, drives=tuple(drive(index) for index in range(slots - 1)))
    too_many = replace(DISKS_ONLY, drives=tuple(drive(index) for index in range(slots)))

    assert len(plan(fitting, engine).devices) == slots
    with pytest.raises(ConfigError, match=f"{slots + 1} devices do not fit the {slots} slots"):
        plan(too_many, engine)


@pytest.mark.parametrize(
    ("size_mib", "regions"),
    [
        (128, [(0, 128 << 20)]),
        (3072, [(0, 3 * GIB)]),
        (3073, [(0, 3 * GIB), (4 * GIB, 1 << 20)]),
        (8192, [(0, 3 * GIB), (4 * GIB, 5 * GIB)]),
    ],
)
def test_ram_leaves_the_hole_below_4_gib_free(size_mib: int, regions: list[tuple[int, int]]) -> None:
    assert ram(size_mib) == tuple(MemoryRegion(*region) for region in regions)


@pytest.mark.parametrize(
    ("size_mib", "addr"),
    [
        (128, 4 * GIB),
        (3072, 4 * GIB),
        (3073, 6 * GIB),
        (5120, 6 * GIB),
        (5121, 8 * GIB),
    ],
)
def test_memory_added_later_has_a_place_beyond_all_ram(size_mib: int, addr: int) -> None:
    layout = plan(replace(CONFIG, memory=MemoryConfig(size_mib=size_mib))).layout

    assert layout is not None
    assert layout.hotplug_addr == addr
    assert f"hotplug  from {addr:#x}, none" in "\n".join(layout.describe())


def test_spare_slots_follow_the_devices_as_far_as_the_board_has_them() -> None:
    few, many = plan(replace(CONFIG, spare_slots=3)), plan(replace(CONFIG, spare_slots=31))

    assert few.layout is not None
    assert many.layout is not None
    assert len(few.layout.slots) == len(few.devices) + 3
    assert len(many.layout.slots) == MAX_SLOTS


def test_slots_have_pages_and_interrupts_of_their_own_until_the_interrupts_run_out() -> None:
    layout = plan(replace(CONFIG, spare_slots=31)).layout
    assert layout is not None
    gsis = [slot.gsi for slot in layout.slots]

    assert [slot.guest_addr for slot in layout.slots] == [0xC000_0000 + n * 0x1000 for n in range(32)]
    assert gsis[:18] == list(range(6, 24))
    assert gsis[18:] == list(range(6, 20))
    assert max(Counter(gsis).values()) == 2
    assert layout.platform.ged_gsi not in gsis


def test_nothing_overlaps() -> None:
    layout = plan(replace(CONFIG, memory=MemoryConfig(size_mib=16384), spare_slots=31)).layout
    assert layout is not None
    ranges = sorted(
        [(region.guest_addr, region.bytes) for region in layout.ram]
        + [(slot.guest_addr, 0x1000) for slot in layout.slots]
        + [(0xFEC0_0000, 0x1000), (0xFEE0_0000, 0x1000), (0xFFFB_C000, 0x4000)]  # IOAPIC, LAPIC, KVM's own
    )

    for (addr, size), (following, _) in pairwise(ranges):
        assert addr + size <= following


def test_rendered_plan_names_every_device_and_its_place() -> None:
    text = plan(CONFIG).render()

    for word in ("/d0", "02:53:54:52:00:00", "link down", "tag t", "cid 3", "last=1"):
        assert word in text
    assert "   7  0xc0007000    13  net      n0" in text
    assert "   8  0xc0008000    14  spare" in text
    assert "0x0-0xfffffff" in text


def test_rendered_plan_says_when_the_engine_chooses_the_addresses() -> None:
    text = plan(CONFIG, TCG).render()

    assert "chosen by engine tcg" in text
    assert "0xc000" not in text
    assert "   6  net      n0" in text
