"""Devices that come and go while the VM runs, driven by QEMU's own client where descriptors are handed
over."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from tests.framework import guest_image
from tests.framework.qemu_client import QemuSession, drive
from tests.framework.vm import Vm, VmFactory, vm_factory
from tools import image
from vmm.config import DriveConfig, JailConfig
from vmm.errors import QmpCommandError
from vmm.qmp.client import QmpClient
from vmm.sys import open_tap

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine("kvm", reason="other engines have no spare slots"),
]

DRIVER = "/sys/bus/platform/drivers/virtio-mmio"
MAC = "02:53:54:52:00:0a"
HOST, GUEST = "10.96.1.1", "10.96.1.2"


def slot_of(qmp: QmpClient, device: str) -> str:
    """The guest's name of the slot that holds a device."""
    (name,) = [
        slot["guest-device"] for slot in qmp.execute("x-strato-query-slots") if slot.get("device") == device
    ]
    return str(name)


def bind(vm: Vm, qmp: QmpClient, device: str) -> None:
    """Let the guest's driver take a device."""
    assert vm.ask(f"store {DRIVER}/bind {slot_of(qmp, device)}") == "ok"


def remove(vm: Vm, qmp: QmpClient, device: str) -> None:
    """Let the guest's driver let go of a device, and take the device away."""
    assert vm.ask(f"store {DRIVER}/unbind {slot_of(qmp, device)}") == "ok"
    assert qmp.execute("device_del", {"id": device}) == {}
    assert qmp.wait_event("DEVICE_DELETED")["data"] == {
        "device": device,
        "path": f"/machine/peripheral/{device}",
    }


@pytest.fixture
def busybox_vms(tmp_path: Path) -> Iterator[VmFactory]:
    """VMs whose guest can give its interface an address."""
    with vm_factory(guest_image.build(tmp_path, {"busybox": image.find_busybox()})) as factory:
        yield factory


@pytest.fixture
def tap() -> Iterator[str]:
    """The name of a tap that nobody has open."""
    subprocess.run(["ip", "tuntap", "add", "dev", "vmhot0", "mode", "tap", "vnet_hdr"], check=True)
    try:
        yield "vmhot0"
    finally:
        subprocess.run(["ip", "link", "delete", "vmhot0"], check=True)


def test_disk_comes_is_used_and_goes_again_and_again(vms: VmFactory) -> None:
    config = vms.config()
    fixed, late = config.runtime_dir / "fixed", config.runtime_dir / "late"
    fixed.write_bytes(b"fixed".ljust(1 << 20, b"\0"))
    late.write_bytes(b"late words".ljust(2 << 20, b"\0"))
    vm = vms.boot(replace(config, drives=(DriveConfig(id="d0", path=fixed),)))

    with vm.qmp() as qmp:
        qmp.execute("blockdev-add", {"driver": "file", "node-name": "n1", "filename": str(late)})
        for _ in range(3):
            arguments = {"driver": "virtio-blk-device", "id": "d1", "drive": "n1", "serial": "hot"}
            assert qmp.execute("device_add", arguments) == {}
            assert [disk["device"] for disk in qmp.execute("query-block")] == ["d0", "d1"]
            bind(vm, qmp, "d1")
            assert vm.ask("cat /dev/vdb").startswith("late words")
            assert vm.ask("cat /sys/block/vdb/serial") == "hot"
            assert vm.ask("cat /sys/block/vdb/size") == str((2 << 20) // 512)
            remove(vm, qmp, "d1")
            assert vm.ask("cat /dev/vdb") == "No such file or directory"
        qmp.execute("blockdev-del", {"node-name": "n1"})
        assert vm.ask("cat /dev/vda").startswith("fixed")
        assert [disk["device"] for disk in qmp.execute("query-block")] == ["d0"]


def test_device_that_the_guest_uses_is_not_taken_away(vms: VmFactory, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"words".ljust(1 << 20, b"\0"))
    vm = vms.boot(replace(vms.config(), jail=JailConfig(folders=(tmp_path,))))

    with vm.qmp() as qmp:
        qmp.execute("blockdev-add", {"driver": "file", "node-name": "n1", "filename": str(disk)})
        qmp.execute("device_add", {"driver": "virtio-blk-device", "id": "d1", "drive": "n1"})
        bind(vm, qmp, "d1")
        with pytest.raises(QmpCommandError, match="unbind it first"):
            qmp.execute("device_del", {"id": "d1"})
        with pytest.raises(QmpCommandError, match="in use by device d1"):
            qmp.execute("blockdev-del", {"node-name": "n1"})
        assert vm.ask("cat /dev/vda").startswith("words")
        remove(vm, qmp, "d1")


def test_interface_on_a_tap_by_name_comes_and_goes(tap: str, vms: VmFactory) -> None:
    # In the jail there is nothing to open a tap with.
    vm = vms.boot(replace(vms.config(), jail=JailConfig(enabled=False)))

    with vm.qmp() as qmp:
        qmp.execute("netdev_add", {"type": "tap", "id": "t1", "ifname": tap, "script": "no"})
        for _ in range(2):
            device = {"driver": "virtio-net-device", "id": "nic", "netdev": "t1", "mac": MAC}
            qmp.execute("device_add", device)
            bind(vm, qmp, "nic")
            assert vm.ask("cat /sys/class/net/eth0/address") == MAC
            remove(vm, qmp, "nic")
        qmp.execute("netdev_del", {"id": "t1"})


async def add_tap(qemu: QemuSession, tap_fd: int) -> None:
    """Pass an open tap to the VM, as the node t1."""
    qemu.client.send_fd_scm(tap_fd)
    await qemu.execute("getfd", {"fdname": "tap"})
    await qemu.execute("netdev_add", {"type": "tap", "id": "t1", "fd": "tap"})


def test_interface_by_a_passed_descriptor_through_qemus_client(vms: VmFactory) -> None:
    vm = vms.boot()
    tap_fd = open_tap(None, "vmhot1")

    async def add(qemu: QemuSession) -> None:
        await add_tap(qemu, tap_fd)
        device = {"driver": "virtio-net-device", "id": "nic", "netdev": "t1", "mac": MAC, "host_mtu": 1400}
        await qemu.execute("device_add", device)

    try:
        drive(vm, add)
    finally:
        os.close(tap_fd)
    with vm.qmp() as qmp:
        bind(vm, qmp, "nic")
        assert vm.ask("cat /sys/class/net/eth0/address") == MAC
        assert vm.ask("cat /sys/class/net/eth0/mtu") == "1400"
        assert vm.ask("up eth0") == "ok"
        assert vm.ask("wait /sys/class/net/eth0/carrier 1") == "ok"
        qmp.execute("set_link", {"name": "nic", "up": False})
        assert vm.ask("wait /sys/class/net/eth0/carrier 0") == "ok"
        remove(vm, qmp, "nic")
        assert Path("/sys/class/net/vmhot1").exists()
        qmp.execute("netdev_del", {"id": "t1"})
    assert not Path("/sys/class/net/vmhot1").exists()


def pings(vm: Vm) -> None:
    """Let packets of all sizes go both ways between the guest's interface and the tap."""
    assert vm.ask(f"run /busybox ip address add {GUEST}/24 dev eth0") == "exit 0"
    assert vm.ask("run /busybox ip link set eth0 up") == "exit 0"
    assert vm.ask(f"run /busybox ping -c 3 -i 0.2 -W 10 -s 4000 {HOST}") == "exit 0"
    subprocess.run(["busybox", "ping", "-c", "3", "-i", "0.2", "-W", "10", GUEST], check=True)


def test_packets_cross_an_interface_that_was_added(busybox_vms: VmFactory) -> None:
    vm = busybox_vms.boot()
    tap_fd = open_tap(None, "vmhot2")

    async def add(qemu: QemuSession) -> None:
        await add_tap(qemu, tap_fd)

    try:
        subprocess.run(["ip", "address", "add", f"{HOST}/24", "dev", "vmhot2"], check=True)
        subprocess.run(["ip", "link", "set", "vmhot2", "up"], check=True)
        drive(vm, add)
    finally:
        os.close(tap_fd)
    with vm.qmp() as qmp:
        for _ in range(2):
            device = {"driver": "virtio-net-device", "id": "nic", "netdev": "t1", "mac": MAC}
            qmp.execute("device_add", device)
            bind(vm, qmp, "nic")
            pings(vm)
            remove(vm, qmp, "nic")


def test_disk_by_a_passed_descriptor_comes_and_goes_through_qemus_client(
    vms: VmFactory, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"passed".ljust(1 << 20, b"\0"))
    vm = vms.boot()

    async def add(qemu: QemuSession) -> list[dict[str, Any]]:
        with disk.open("r+b") as stream:
            qemu.client.send_fd_scm(stream.fileno())
        assert (await qemu.execute("add-fd", {"fdset-id": 3}))["fdset-id"] == 3
        node = {"driver": "raw", "node-name": "n1", "file": {"driver": "file", "filename": "/dev/fdset/3"}}
        await qemu.execute("blockdev-add", node)
        await qemu.execute("remove-fd", {"fdset-id": 3})
        await qemu.execute("device_add", {"driver": "virtio-blk-device", "id": "d1", "drive": "n1"})
        return list(await qemu.execute("query-block"))

    async def take_away(qemu: QemuSession) -> dict[str, Any]:
        with pytest.raises(ExecuteError, match="in use by device d1"):
            await qemu.execute("blockdev-del", {"node-name": "n1"})
        assert await qemu.execute("device_del", {"id": "d1"}) == {}
        deleted = await qemu.event("DEVICE_DELETED")
        await qemu.execute("blockdev-del", {"node-name": "n1"})
        assert await qemu.execute("query-block") == []
        return deleted

    assert [entry["device"] for entry in drive(vm, add)] == ["d1"]
    with vm.qmp() as qmp:
        bind(vm, qmp, "d1")
        assert vm.ask("cat /dev/vda").startswith("passed")
        assert vm.ask(f"store {DRIVER}/unbind {slot_of(qmp, 'd1')}") == "ok"
    assert drive(vm, take_away) == {"device": "d1", "path": "/machine/peripheral/d1"}


def test_share_comes_is_used_and_goes(vms: VmFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    vm = vms.boot(replace(vms.config(), jail=JailConfig(folders=(tmp_path,))))

    with vm.qmp() as qmp:
        share = {"driver": "x-strato-fs-device", "id": "late", "tag": "hot", "directory": str(tmp_path)}
        qmp.execute("device_add", share)
        bind(vm, qmp, "late")
        assert vm.ask("mount hot /mnt") == "ok"
        assert vm.ask("cat /mnt/file") == "from the host"
        assert vm.ask("store /mnt/answer from the guest") == "ok"
        assert (tmp_path / "answer").read_text() == "from the guest"
        assert vm.ask("unmount /mnt") == "ok"
        remove(vm, qmp, "late")


def test_added_devices_are_found_at_boot_after_a_reset(vms: VmFactory, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"there".ljust(1 << 20, b"\0"))
    vm = vms.boot(replace(vms.config(), jail=JailConfig(folders=(tmp_path,))))

    with vm.qmp() as qmp:
        qmp.execute("blockdev-add", {"driver": "file", "node-name": "n1", "filename": str(disk)})
        qmp.execute("device_add", {"driver": "virtio-blk-device", "id": "d1", "drive": "n1"})
        qmp.execute("system_reset")
        vm.wait_ready()
        assert vm.ask("cat /dev/vda").startswith("there")


def test_slots_run_out_honestly(vms: VmFactory) -> None:
    vm = vms.boot(replace(vms.config(), spare_slots=1))

    with vm.qmp() as qmp:
        qmp.execute("device_add", {"driver": "x-strato-fs-device", "id": "one", "tag": "one"})
        with pytest.raises(QmpCommandError, match="No spare slot is left"):
            qmp.execute("device_add", {"driver": "x-strato-fs-device", "id": "two", "tag": "two"})
