"""The QMP server of a running VM, seen by our own client and by QEMU's (qemu.qmp)."""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp.error import QMPError

from tests.framework import tiny_kernel
from tests.framework.command import eventually
from tests.framework.engine import engine_in_use
from tests.framework.qemu_client import QemuSession, drive
from tests.framework.vm import DEADLINE_S, Vm, VmFactory, vm_factory, with_boot
from vmm import VERSION
from vmm.config import CpuConfig, DriveCache, DriveConfig, EngineName, LimitConfig
from vmm.errors import QmpCommandError
from vmm.exit_report import ExitKind
from vmm.qmp.client import AsyncQmpClient, QmpClient
from vmm.qmp.schema import COMMANDS

pytestmark = pytest.mark.integration


@pytest.fixture
def vm(vms: VmFactory) -> Vm:
    """A running VM of the test's own, which may end it."""
    return vms.boot(replace(vms.config(), name="qmp test"))


@pytest.fixture(scope="module")
def lasting_vm(guest: Path) -> Iterator[Vm]:
    """A running VM that tests leave as they found it."""
    with vm_factory(guest) as factory:
        yield factory.boot(replace(factory.config(), name="qmp test"))


def names(client: QmpClient) -> list[str]:
    """The events that have arrived at a client, once the server has nothing more to say."""
    client.execute("query-status")
    return [str(event["event"]) for event in client.events]


def runs(vm: Vm) -> bool:
    """Whether the VM is past its start."""
    with vm.qmp() as qmp:
        return bool(qmp.execute("query-status")["running"])


def test_stop_and_cont_announce_once_and_stop_the_guest(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as qmp:
        for command in ("stop", "stop", "cont", "cont", "stop"):
            qmp.execute(command)
        assert names(qmp) == ["STOP", "RESUME", "STOP"]
        assert qmp.execute("query-status")["status"] == "paused"
        lasting_vm.send("echo heard")
        qmp.execute("cont")
        lasting_vm.wait_for("=> heard")
        status = qmp.execute("query-status")
        assert status == {"status": "running", "running": True, "singlestep": False}


def test_qemus_own_client_drives_the_vm(lasting_vm: Vm) -> None:
    async def stop_and_go(qemu: QemuSession) -> list[str]:
        seen = []
        for command, event in (("stop", "STOP"), ("cont", "RESUME")):
            assert await qemu.execute(command) == {}
            await qemu.event(event)
            seen.append((await qemu.execute("query-status"))["status"])
        with pytest.raises(QMPError, match="migrate has not been found"):
            await qemu.execute("migrate", {"uri": "tcp:1"})
        return seen

    assert drive(lasting_vm, stop_and_go) == ["paused", "running"]


def test_qemus_own_client_asks_all_that_it_can(vms: VmFactory) -> None:
    config = vms.config()
    disk = config.runtime_dir / "disk"
    disk.write_bytes(bytes(3 << 20))
    limit = LimitConfig(bandwidth=7 << 20, operations=900)
    drives = (DriveConfig(id="d0", path=disk, readonly=True, cache=DriveCache.NONE, limit=limit),)
    vm = vms.boot(replace(config, drives=drives, cpu=CpuConfig(count=2)))

    async def ask(qemu: QemuSession) -> dict[str, Any]:
        queries = ("block", "cpus-fast", "kvm", "memory-size-summary", "name", "status", "version")
        answers = {name: await qemu.execute(f"query-{name}") for name in queries}
        commands = {command["name"] for command in await qemu.execute("query-commands")}
        assert commands >= {f"query-{name}" for name in queries}
        return answers

    answers = drive(vm, ask)
    (block,) = answers["block"]
    inserted = block["inserted"]
    assert (block["device"], inserted["ro"], inserted["drv"]) == ("d0", True, "raw")
    assert (inserted["bps"], inserted["iops"]) == (7 << 20, 900)
    assert inserted["cache"] == {"writeback": True, "direct": False, "no-flush": True}
    assert inserted["image"]["virtual-size"] == 3 << 20
    assert inserted["image"]["filename"] == str(disk)
    cpus = answers["cpus-fast"]
    assert [cpu["cpu-index"] for cpu in cpus] == [0, 1]
    assert len({cpu["thread-id"] for cpu in cpus}) == 2
    assert answers["kvm"]["enabled"] is (engine_in_use() is EngineName.KVM)
    assert answers["memory-size-summary"] == {"base-memory": 256 << 20, "plugged-memory": 0}
    assert answers["name"] == {"name": "test"}
    assert answers["status"]["running"] is True
    assert set(answers["version"]) == {"qemu", "package"}


@pytest.mark.engine("kvm", reason="engine tcg has no balloon")
def test_qemus_own_client_blows_the_balloon_up_and_lets_air_out(vms: VmFactory) -> None:
    vm = vms.boot()
    full = 256 << 20

    async def blow(qemu: QemuSession) -> list[int]:
        seen = [(await qemu.execute("query-balloon"))["actual"]]
        for size in (full - (64 << 20), full):
            await qemu.execute("balloon", {"value": size})
            while (await qemu.event("BALLOON_CHANGE"))["actual"] != size:
                pass
            seen.append((await qemu.execute("query-balloon"))["actual"])
        return seen

    assert drive(vm, blow) == [full, full - (64 << 20), full]


def test_qemus_own_client_resets_and_switches_off(vm: Vm) -> None:
    async def reset(qemu: QemuSession) -> dict[str, Any]:
        assert await qemu.execute("system_reset") == {}
        return await qemu.event("RESET")

    async def switch_off(qemu: QemuSession) -> dict[str, Any]:
        assert await qemu.execute("system_powerdown") == {}
        await qemu.event("POWERDOWN")
        return await qemu.event("SHUTDOWN")

    assert drive(vm, reset)["guest"] is False
    vm.wait_ready()
    assert drive(vm, switch_off) == {"guest": True, "reason": "guest-shutdown"}
    assert vm.wait_exit().kind is ExitKind.GUEST_SHUTDOWN


def test_qemus_own_client_quits(vm: Vm) -> None:
    async def leave(qemu: QemuSession) -> dict[str, Any]:
        assert await qemu.execute("quit") == {}
        return await qemu.event("SHUTDOWN")

    assert drive(vm, leave) == {"guest": False, "reason": "host-qmp-quit"}
    assert vm.wait_exit().kind is ExitKind.QUIT


def test_qemus_own_client_hears_of_a_panic(vm: Vm) -> None:
    async def listen(qemu: QemuSession) -> tuple[dict[str, Any], dict[str, Any]]:
        vm.send("panic")
        return await qemu.event("GUEST_PANICKED"), await qemu.event("SHUTDOWN")

    panicked, ended = drive(vm, listen)
    assert panicked["action"] == "poweroff"
    assert ended == {"guest": True, "reason": "guest-panic"}


def test_guest_whose_crash_kernel_takes_over_is_heard_of_and_goes_on(vms: VmFactory) -> None:
    config = vms.config()
    code = tiny_kernel.WAIT_FOR_BUTTON[engine_in_use()] + tiny_kernel.CRASH_LOADED
    kernel = tiny_kernel.write(config.runtime_dir / "kernel", code)
    vm = vms.start(with_boot(config, kernel=kernel, initrd=None))
    eventually(lambda: vm.qmp_path.exists() and runs(vm), "VM that runs", timeout_s=DEADLINE_S)

    async def listen(qemu: QemuSession) -> tuple[dict[str, Any], str]:
        await qemu.execute("system_powerdown")
        data = await qemu.event("GUEST_CRASHLOADED")
        status = (await qemu.execute("query-status"))["status"]
        await qemu.execute("quit")
        return data, status

    data, status = drive(vm, listen)
    assert (data["action"], status) == ("run", "running")
    assert vm.wait_exit().kind is ExitKind.QUIT


def test_events_reach_every_client(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as first, lasting_vm.qmp() as second:
        first.execute("stop")
        assert second.wait_event("STOP")["timestamp"]["seconds"] > 0
        second.execute("cont")
        assert first.wait_event("RESUME")


def test_garbage_closes_only_the_client_that_sends_it(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as good:
        for garbage in (b"\x00\xff" * 100, b"[]", b'{"execute": ' + b"[" * 1000, b'"' + b"x" * 200_000):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.settimeout(DEADLINE_S)
                bad.connect(str(lasting_vm.qmp_path))
                try:
                    bad.sendall(garbage)
                    while bad.recv(4096):
                        continue
                except (BrokenPipeError, ConnectionResetError):
                    continue
        assert good.execute("query-status")["running"] is True


def test_client_that_never_reads_is_dropped_and_harms_nobody(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as good, socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(lasting_vm.qmp_path))
        deaf.settimeout(DEADLINE_S)
        deaf.sendall(b'{"execute": "qmp_capabilities"}')
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                deaf.sendall(b'{"execute": "query-commands"}' * 500)
        assert good.execute("query-status")["running"] is True


def test_commands_before_negotiation_are_refused(lasting_vm: Vm) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(DEADLINE_S)
        raw.connect(str(lasting_vm.qmp_path))
        stream = raw.makefile("rb")
        assert json.loads(stream.readline())["QMP"]["capabilities"] == []
        raw.sendall(b'{"execute": "query-status", "id": "a"}')
        reply = json.loads(stream.readline())
        stream.close()

    assert reply["error"]["class"] == "CommandNotFound"
    assert reply["id"] == "a"


@pytest.mark.parametrize(
    ("command", "arguments", "error_class"),
    [
        ("migrate", {}, "CommandNotFound"),
        ("device_add", {"driver": "virtio-blk-device"}, "GenericError"),
        ("device_add", {"driver": "virtio-gpu-device", "id": "x"}, "GenericError"),
        ("device_del", {"id": "x", "force": True}, "GenericError"),
        ("blockdev-add", {"driver": "qcow2", "node-name": "n"}, "GenericError"),
        ("getfd", {"fdname": "tap"}, "GenericError"),
        ("balloon", {"value": "1"}, "GenericError"),
        ("x-strato-set-block-limit", {"id": "d9", "bandwidth": 1}, "DeviceNotFound"),
        ("qmp_capabilities", {}, "CommandNotFound"),
        ("stop", {"now": True}, "GenericError"),
        ("x-strato-set-link", {"id": "net9", "up": True}, "DeviceNotFound"),
        ("x-strato-set-link", {"id": "net9"}, "GenericError"),
        ("x-strato-set-link", {"id": 9, "up": True}, "GenericError"),
        ("x-strato-set-net-limit", {"id": "net9", "direction": "receive"}, "DeviceNotFound"),
        ("x-strato-set-net-limit", {"id": "net9", "direction": "up"}, "GenericError"),
        ("x-strato-set-net-limit", {"id": "n", "direction": "receive", "bandwidth": -1}, "GenericError"),
    ],
)
def test_command_that_cannot_be_is_refused_with_qemus_class(
    lasting_vm: Vm, command: str, arguments: dict[str, object], error_class: str
) -> None:
    with lasting_vm.qmp() as qmp, pytest.raises(QmpCommandError) as caught:
        qmp.execute(command, arguments)

    assert caught.value.error_class == error_class


def test_queries_answer_in_qemus_shapes(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as qmp:
        assert qmp.execute("query-version")["package"] == f"strato-{VERSION}"
        assert qmp.execute("query-name") == {"name": "qmp test"}
        assert qmp.execute("query-kvm")["enabled"] is (engine_in_use() is EngineName.KVM)
        assert {item["name"] for item in qmp.execute("query-commands")} == set(COMMANDS)
        (cpu,) = qmp.execute("query-cpus-fast")
        assert cpu["cpu-index"] == 0
        assert cpu["thread-id"] > 0


def test_info_tells_engine_and_phases(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as qmp:
        info = qmp.execute("x-strato-info")

    assert info["engine"] == engine_in_use()
    phases = list(info["phases_ms"].values())
    assert phases == sorted(phases)


@pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
def test_info_tells_the_process_of_qemu(lasting_vm: Vm) -> None:
    with lasting_vm.qmp() as qmp:
        pids = qmp.execute("x-strato-info")["pids"]

    # As strato-vmm sees it, which is PID 1 of a namespace of its own.
    status = Path(f"/proc/{lasting_vm.child('qemu-system-x86_64')}/status").read_text()
    (seen,) = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
    assert pids["qemu"] == int(seen[-1])


def test_quit_answers_and_ends_the_vm(vm: Vm) -> None:
    with vm.qmp() as qmp:
        assert qmp.execute("quit") == {}
        assert qmp.wait_event("SHUTDOWN")["data"]["guest"] is False

    assert vm.wait_exit().kind is ExitKind.QUIT


def test_powerdown_presses_the_guests_power_button(vm: Vm) -> None:
    with vm.qmp() as qmp:
        qmp.execute("system_powerdown")
        qmp.wait_event("POWERDOWN")
        assert qmp.wait_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-shutdown"}

    assert vm.wait_exit().kind is ExitKind.GUEST_SHUTDOWN


def test_reset_from_outside_boots_the_guest_again(vm: Vm) -> None:
    with vm.qmp() as qmp:
        for _ in range(2):
            qmp.execute("system_reset")
            qmp.wait_event("RESET")
            vm.wait_ready()

    vm.send("reset")
    assert vm.wait_exit().kind is ExitKind.GUEST_RESET


def test_asyncio_client_pipelines_and_hears_events(vm: Vm) -> None:
    async def drive() -> tuple[list[str], bool]:
        events: list[str] = []
        closed = asyncio.Event()
        client = AsyncQmpClient(on_event=lambda name, _: events.append(name), on_close=closed.set)
        await client.connect(vm.qmp_path)
        stopped, status, resumed = await asyncio.gather(
            client.execute("stop"), client.execute("query-status"), client.execute("cont")
        )
        assert (stopped, status["status"], resumed) == ({}, "paused", {})
        await client.execute("quit")
        await closed.wait()
        return events, closed.is_set()

    events, closed = asyncio.run(asyncio.wait_for(drive(), DEADLINE_S))
    assert events == ["STOP", "RESUME", "SHUTDOWN"]
    assert closed
