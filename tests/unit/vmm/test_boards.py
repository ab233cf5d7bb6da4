"""The microvm board: slots and command line."""

from dataclasses import replace
from pathlib import Path

import pytest

from vmm.boards.base import DeviceKind, board
from vmm.boards.microvm import MAX_SLOTS
from vmm.config import (
    BoardName,
    BootConfig,
    DriveConfig,
    NetConfig,
    RngConfig,
    ShareConfig,
    VmConfig,
    VsockConfig,
)
from vmm.errors import ConfigError

pytestmark = pytest.mark.unit


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


def test_devices_fill_the_slots_in_the_documented_order() -> None:
    plan = board(BoardName.MICROVM).plan(CONFIG, ())

    assert [(device.slot, device.kind, device.id) for device in plan.devices] == [
        (0, DeviceKind.CONSOLE, "console"),
        (1, DeviceKind.RNG, "rng"),
        (2, DeviceKind.VSOCK, "vsock"),
        (3, DeviceKind.FS, "fs0"),
        (4, DeviceKind.BLOCK, "d0"),
        (5, DeviceKind.BLOCK, "d1"),
        (6, DeviceKind.NET, "n0"),
    ]


def test_command_line_ends_with_engine_then_user_arguments() -> None:
    plan = board(BoardName.MICROVM).plan(CONFIG, ("engine=1",))

    assert plan.cmdline.startswith("console=hvc0 quiet panic=-1 reboot=t")
    assert plan.cmdline.endswith(" engine=1 last=1")


def test_without_rng_the_slot_is_not_wasted() -> None:
    plan = board(BoardName.MICROVM).plan(replace(CONFIG, rng=RngConfig(enabled=False)), ())

    assert plan.devices[1].kind is DeviceKind.VSOCK


def test_as_many_devices_as_slots_are_planned_and_one_more_is_refused() -> None:
    small = replace(CONFIG, rng=RngConfig(enabled=False), vsock=None, shares=(), nets=())
    fitting = replace(small, drives=tuple(drive(index) for index in range(MAX_SLOTS - 1)))
    too_many = replace(small, drives=tuple(drive(index) for index in range(MAX_SLOTS)))

    assert len(board(BoardName.MICROVM).plan(fitting, ()).devices) == MAX_SLOTS
    with pytest.raises(ConfigError, match="33 devices"):
        board(BoardName.MICROVM).plan(too_many, ())


def test_rendered_plan_names_every_device() -> None:
    text = board(BoardName.MICROVM).plan(CONFIG, ()).render()

    for word in ("/d0", "02:53:54:52:00:00", "link down", "tag t", "cid 3", "last=1"):
        assert word in text
