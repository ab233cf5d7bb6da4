"""Devices that come while a guest of Strato's own runs: its agent binds them, and lets go of them again."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from shim.agent_proto.client import AgentClient, connect_stream
from shim.agent_proto.generated import agent_pb2
from shim.errors import Code, RemoteError
from tests.framework import compiler
from tests.framework.agent_vm import AgentVm, boot_agent
from tests.framework.vm import DEADLINE_S, VmFactory
from vmm.config import JailConfig, ShareConfig
from vmm.sys import open_tap

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine("kvm", reason="other engines have no spare slots"),
]

MAC = "02:53:54:52:00:0a"
SHARES = "/run/strato/shares"
NETWORK_CARD, BLOCK_DEVICE = 1, 2  # VIRTIO 1.2, 5 "Device Types"


@asynccontextmanager
async def qmp_of(vm: AgentVm) -> AsyncIterator[QMPClient]:
    """A connection of QEMU's own client, which hands descriptors over."""
    client = QMPClient("test")
    await client.connect(str(vm.vm.qmp_path))
    try:
        yield client
    finally:
        await client.disconnect()


async def slots(qmp: QMPClient) -> dict[str | None, str]:
    """The guest's names of slots by what they hold; one of the empty ones by None."""
    answer: Any = await qmp.execute("x-strato-query-slots")
    return {slot.get("device"): slot["guest-device"] for slot in answer}


async def refusal(agent: AgentClient, verb: str, device: str) -> tuple[Code, str]:
    """What the agent answers to a request that it does not grant."""
    with pytest.raises(RemoteError) as caught:
        await getattr(agent, verb)(device)
    return caught.value.code, str(caught.value)


@asynccontextmanager
async def container_with(vm: AgentVm, disk: str) -> AsyncIterator[str]:
    """A container that has mounted a disk and printed the file `words` of it; its line."""
    spec = {
        "ociVersion": "1.1.0",
        "root": {"path": f"{SHARES}/rootfs"},
        "process": {"args": ["/init", "cat /disk/words"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/disk", "type": "ext4", "source": f"/dev/{disk}", "options": ["ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            # To mount it is to open it.
            "resources": {"devices": [{"allow": True, "type": "b", "access": "rwm"}]},
        },
    }
    request = agent_pb2.CreateContainerRequest(
        container_id="box", oci_spec=json.dumps(spec).encode(), stdio=agent_pb2.Stdio(stdout=True)
    )
    await vm.agent.create_container(request, timeout_s=DEADLINE_S)
    try:
        with await connect_stream(str(vm.vsock), "box//stdout") as stdout:
            await vm.agent.start_container("box", "")
            output = b""
            while output.count(b"\n") < 2:
                output += await asyncio.get_running_loop().sock_recv(stdout, 4096)
            yield output.decode().splitlines()[1]
    finally:
        await vm.agent.remove_container("box", timeout_s=DEADLINE_S)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An ext4 file system with the file `words`."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "words").write_text("late words")
    image = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "files", image, "8M"], check=True)
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's root whose only program is the tests' init, which obeys its arguments."""
    root = tmp_path / "root"
    for name in ("proc", "dev", "sys", "disk"):
        (root / name).mkdir(parents=True)
    (root / "init").write_bytes(compiler.guest_init().read_bytes())
    (root / "init").chmod(0o755)
    return root


def test_disk_is_bound_read_by_a_container_and_let_go(vms: VmFactory, disk: Path, root: Path) -> None:
    jail = JailConfig(folders=(disk.parent,))
    config = replace(vms.config(), jail=jail, shares=(ShareConfig(tag="rootfs", directory=root),))

    async def run() -> None:
        async with boot_agent(vms, config) as vm, qmp_of(vm) as qmp:
            agent = vm.agent
            share = agent_pb2.Share(tag="rootfs", mount_point=f"{SHARES}/rootfs")
            await agent.create_sandbox(agent_pb2.CreateSandboxRequest(sandbox_id="s", shares=[share]))
            await qmp.execute("blockdev-add", {"driver": "file", "node-name": "n1", "filename": str(disk)})
            for _ in range(2):
                device = {"driver": "virtio-blk-device", "id": "d1", "drive": "n1", "serial": "hot"}
                await qmp.execute("device_add", device)
                slot = (await slots(qmp))["d1"]

                bound = await agent.bind_device(slot)

                assert bound == agent_pb2.BoundDevice(virtio_id=BLOCK_DEVICE, name="vda", serial="hot")
                async with container_with(vm, bound.name) as line:
                    assert line.strip() == "=> late words"
                    code, message = await refusal(agent, "unbind_device", slot)
                    assert (code, "vda" in message) == (Code.FAILED_PRECONDITION, True)
                await agent.unbind_device(slot)
                await qmp.execute("device_del", {"id": "d1"})
            await qmp.execute("blockdev-del", {"node-name": "n1"})

    asyncio.run(run())


def test_interface_is_bound_configured_and_let_go(vms: VmFactory) -> None:
    tap_fd = open_tap(None, "vmhot2")

    async def run() -> None:
        async with boot_agent(vms, vms.config()) as vm, qmp_of(vm) as qmp:
            agent = vm.agent
            qmp.send_fd_scm(tap_fd)
            await qmp.execute("getfd", {"fdname": "tap"})
            await qmp.execute("netdev_add", {"type": "tap", "id": "t1", "fd": "tap"})
            for _ in range(2):
                device = {"driver": "virtio-net-device", "id": "nic", "netdev": "t1", "mac": MAC}
                await qmp.execute("device_add", device)
                slot = (await slots(qmp))["nic"]

                bound = await agent.bind_device(slot)

                assert bound == agent_pb2.BoundDevice(virtio_id=NETWORK_CARD, name="eth0", mac=MAC)
                wanted = agent_pb2.Interface(device_mac=bound.mac, name="net0", mac=MAC, up=True)
                await agent.update_interface(wanted)
                (found,) = await agent.list_interfaces()
                assert (found.name, found.mac, found.up) == ("net0", MAC, True)
                await agent.unbind_device(slot)
                assert list(await agent.list_interfaces()) == []
                await qmp.execute("device_del", {"id": "nic"})
            await qmp.execute("netdev_del", {"id": "t1"})

    try:
        asyncio.run(run())
    finally:
        os.close(tap_fd)


def test_requests_that_cannot_be_granted_are_refused_in_words(vms: VmFactory, disk: Path) -> None:
    config = replace(vms.config(), jail=JailConfig(folders=(disk.parent,)))

    async def run() -> None:
        async with boot_agent(vms, config) as vm, qmp_of(vm) as qmp:
            agent = vm.agent
            known = await slots(qmp)
            empty = known[None]
            assert empty is not None

            code, message = await refusal(agent, "bind_device", empty)
            assert (code, f"{empty} has DeviceID 0" in message) == (Code.FAILED_PRECONDITION, True)
            code, message = await refusal(agent, "unbind_device", empty)
            assert (code, f"{empty} is not bound" in message) == (Code.FAILED_PRECONDITION, True)
            assert (await refusal(agent, "bind_device", "LNRO0005:ff"))[0] is Code.NOT_FOUND
            assert (await refusal(agent, "bind_device", "../LNRO0005:00"))[0] is Code.INVALID_ARGUMENT
            # The line to the host, over which this is asked.
            assert (await refusal(agent, "bind_device", known["vsock"]))[0] is Code.ALREADY_EXISTS
            code, message = await refusal(agent, "unbind_device", known["vsock"])
            assert (code, "type 19" in message) == (Code.FAILED_PRECONDITION, True)

            await qmp.execute("blockdev-add", {"driver": "file", "node-name": "n1", "filename": str(disk)})
            await qmp.execute("device_add", {"driver": "virtio-blk-device", "id": "d1", "drive": "n1"})
            slot = (await slots(qmp))["d1"]
            assert (await agent.bind_device(slot)).serial == ""
            assert (await refusal(agent, "bind_device", slot))[0] is Code.ALREADY_EXISTS

    asyncio.run(run())
