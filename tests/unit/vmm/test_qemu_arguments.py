"""The QEMU command line of a plan."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit.vmm.test_boards import CONFIG, TCG
from vmm.boards.base import board
from vmm.config import BoardName, NetConfig, ShareConfig, VmConfig
from vmm.engines.qemu_arguments import MAX_SLOTS, QemuHost, Wiring, command_line

pytestmark = pytest.mark.unit

WIRING = Wiring(
    console_fd=20,
    backend_fds={
        "rng": 23,
        "vsock": 21,
        "fs0": 22,
        **{f"d{index}": 24 + index for index in range(MAX_SLOTS)},
        **{f"n{index}": 60 + index for index in range(2)},
    },
)


def build(config: VmConfig) -> list[str]:
    plan = board(BoardName.MICROVM).plan(config, TCG)
    return command_line(plan, WIRING, QemuHost(program=Path("/q"), qmp_fd=19))


def options(arguments: list[str], name: str) -> list[str]:
    return [value for key, value in pairwise(arguments) if key == f"-{name}"]


def test_slots_descend_from_the_last_bus() -> None:
    devices = options(build(CONFIG), "device")

    for kind, bus in (("virtio-serial-device", 23), ("vhost-user-rng", 22), ("virtio-net-device", 17)):
        (line,) = [device for device in devices if device.startswith(kind)]
        assert f"bus=virtio-mmio-bus.{bus}" in line.split(",")


def test_backends_and_console_get_their_descriptors() -> None:
    assert options(build(CONFIG), "chardev") == [
        "socket,id=qmp,fd=19",
        "socket,id=console,fd=20",
        "socket,id=chr-rng,fd=23",
        "socket,id=chr-vsock,fd=21",
        "socket,id=chr-fs0,fd=22",
        "socket,id=chr-d0,fd=24",
        "socket,id=chr-d1,fd=25",
        "socket,id=chr-n0,path=/proc/self/fd/60",
    ]


def test_vm_starts_paused_and_never_reboots_by_itself() -> None:
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(build(CONFIG))


def test_emulated_processor_announces_no_fast_strings() -> None:
    (model,) = options(build(CONFIG), "cpu")

    assert {"-erms", "-fsrm"} <= set(model.split(","))


def test_commas_in_names_do_not_end_options() -> None:
    share = ShareConfig(tag="a,b", directory=Path("/s"))
    arguments = build(replace(CONFIG, name="x,debug-threads=on", shares=(share,)))

    assert options(arguments, "name") == ["guest=x,,debug-threads=on"]
    assert any("tag=a,,b," in device for device in options(arguments, "device"))


def test_drives_are_served_by_their_backends() -> None:
    lines = [line for line in options(build(CONFIG), "device") if line.startswith("vhost-user-blk")]

    assert [line.split(",")[1:3] for line in lines] == [
        ["id=d0", "chardev=chr-d0"],
        ["id=d1", "chardev=chr-d1"],
    ]


def test_interface_is_served_from_outside_with_what_the_guest_reads_of_it() -> None:
    net = NetConfig(id="n0", tap_name="tap7", mac="02:53:54:52:00:00", mtu=9000)
    arguments = build(replace(CONFIG, nets=(net,)))

    assert options(arguments, "netdev") == ["vhost-user,id=dev-n0,chardev=chr-n0"]
    (device,) = [words.split(",") for words in options(arguments, "device") if "virtio-net" in words]
    assert {"mac=02:53:54:52:00:00", "host_mtu=9000", "ctrl_guest_offloads=off"} <= set(device)
    assert not any("tap" in word for word in arguments)
