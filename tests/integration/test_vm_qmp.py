"""The QMP server of a running VM, seen by our own client and by QEMU's (qemu.qmp)."""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from tests.framework.engine import engine_in_use
from tests.framework.vm import DEADLINE_S, Vm, VmFactory, vm_factory
from vmm import VERSION
from vmm.config import EngineName
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
    async def drive() -> list[str]:
        seen: list[str] = []
        client = QMPClient("test")
        await client.connect(str(lasting_vm.qmp_path))
        with client.listener() as listener:
            await client.execute("stop")
            seen.append(str((await listener.get())["event"]))
            await client.execute("cont")
            seen.append(str((await listener.get())["event"]))
            status = await client.execute("query-status")
            assert isinstance(status, dict)
            seen.append(str(status["status"]))
            with pytest.raises(QMPError, match="migrate has not been found"):
                await client.execute("migrate", {"uri": "tcp:1"})
        await client.disconnect()
        return seen

    assert asyncio.run(asyncio.wait_for(drive(), DEADLINE_S)) == ["STOP", "RESUME", "running"]


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
