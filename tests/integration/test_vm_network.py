"""Packets between guest and host over a tap: echoes, and streams both ways whose contents are compared."""

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.framework import guest_image
from tests.framework.vm import DEADLINE_S, Vm, VmFactory, VmFailureError, vm_factory
from tools import image
from vmm.config import CpuConfig, NetConfig
from vmm.sys import open_tap

pytestmark = pytest.mark.integration

INTERFACE, HOST, GUEST, PORT = "vmnet0", "10.96.0.1", "10.96.0.2", 4321
STREAM_BYTES = 8 << 20

SCRIPTS = {
    "send": f"""#!/busybox sh
/busybox dd if=/dev/urandom of=/sent bs=64k count={STREAM_BYTES >> 16} 2>/dev/null
/busybox nc {HOST} {PORT} < /sent || exit 1
/busybox sha256sum /sent
""",
    "receive": f"""#!/busybox sh
/busybox nc {HOST} {PORT} > /received < /dev/null || exit 1
/busybox sha256sum /received
""",
}


@dataclass(frozen=True)
class Wire:
    """A guest with an address on a tap of the host."""

    vm: Vm
    listener: socket.socket

    def run(self, words: str) -> str:
        """Run a program in the guest; what it printed."""
        start = len(self.vm.output)
        try:
            answer = self.vm.ask(f"run {words}")
        except VmFailureError as failure:
            raise VmFailureError(f"{failure}\n{host_side()}") from None
        assert answer == "exit 0", self.vm.describe()
        return self.vm.output[start:]


def host_side() -> str:
    """What the host knows of streams and of the tap: tells which end of one that stands still waits."""
    commands = (["ss", "-tnio"], ["ip", "-s", "link", "show", INTERFACE])
    shown = (subprocess.run(command, capture_output=True, text=True, check=False) for command in commands)
    return "\n".join(f"--- {' '.join(done.args)}\n{done.stdout}{done.stderr}" for done in shown)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    files = {"busybox": image.find_busybox()}
    for name, text in SCRIPTS.items():
        files[name] = tmp_path / name
        files[name].write_text(text)
    with vm_factory(guest_image.build(tmp_path, files)) as factory, socket.socket() as listener:
        yield Wire(boot(factory, listener), listener)


def boot(factory: VmFactory, listener: socket.socket) -> Vm:
    """A VM with one interface; both ends are configured."""
    tap = open_tap(None, INTERFACE)
    try:
        subprocess.run(["ip", "address", "add", f"{HOST}/24", "dev", INTERFACE], check=True)
        subprocess.run(["ip", "link", "set", INTERFACE, "up"], check=True)
        net = NetConfig(id="net0", tap_fd=tap, mac="02:53:54:52:00:0b")
        vm = factory.boot(replace(factory.config(), nets=(net,), cpu=CpuConfig(count=2)))
    finally:
        os.close(tap)
    listener.settimeout(DEADLINE_S)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a stream of a failed test may live on
    listener.bind((HOST, PORT))
    listener.listen()
    assert vm.ask(f"run /busybox ip address add {GUEST}/24 dev eth0") == "exit 0"
    assert vm.ask("run /busybox ip link set eth0 up") == "exit 0"
    return vm


def test_echoes_go_both_ways(wire: Wire) -> None:
    assert "5 packets received" in wire.run(f"/busybox ping -c 5 -i 0.2 -W 10 {HOST}")
    done = subprocess.run(
        ["busybox", "ping", "-c", "5", "-i", "0.2", "-s", "4000", GUEST],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "5 packets received" in done.stdout


def test_stream_from_the_guest_arrives_whole(wire: Wire) -> None:
    received = hashlib.sha256()

    def take() -> None:
        connection, _ = wire.listener.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            while data := connection.recv(1 << 16):
                received.update(data)

    taker = threading.Thread(target=take)
    taker.start()
    output = wire.run("/send")
    taker.join(DEADLINE_S)

    assert received.hexdigest() in output


def test_stream_to_the_guest_arrives_whole(wire: Wire) -> None:
    data = os.urandom(STREAM_BYTES)

    def give() -> None:
        connection, _ = wire.listener.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            connection.sendall(data)

    giver = threading.Thread(target=give)
    giver.start()
    output = wire.run("/receive")
    giver.join(DEADLINE_S)

    assert hashlib.sha256(data).hexdigest() in output
