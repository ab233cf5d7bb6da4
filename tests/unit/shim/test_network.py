"""Taps and redirections in real network namespaces; frames are followed from a veth's peer to the tap."""

import gc
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.errors import HostError, SpecRefusedError
from shim.network import Tap, open_spare_taps, scan_and_mirror, unmirror
from shim.network_plan import Address, NetworkPlan

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(os.geteuid() != 0, reason="Network namespaces need root"),
]

_TIMEOUT_S = 10.0
_VNET_HEADER = bytes(10)  # struct virtio_net_hdr (linux/virtio_net.h); a tap's default
_ETHERTYPE = 0x88B5  # for local experiments (IEEE 802)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Namespace:
    """A named network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        _ip("netns", "add", name)
        self.fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def ip(self, *arguments: str) -> str:
        return _ip("-n", self.name, *arguments)

    def tc(self, *arguments: str) -> str:
        command = ["tc", "-n", self.name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def packet_socket(self, interface: str) -> socket.socket:
        found: list[socket.socket] = []

        def make() -> None:
            import vmm.sys

            vmm.sys.setns(self.fd, 0x40000000)
            found.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE)))
            found[0].bind((interface, _ETHERTYPE))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return found[0]

    def close(self) -> None:
        os.close(self.fd)
        _ip("netns", "del", self.name)


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """A namespace with eth0, a veth whose peer is in `<name>-peer`, and nothing left behind afterwards."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    namespace, peer = Namespace(f"strato-t{os.getpid()}"), Namespace(f"strato-t{os.getpid()}-peer")
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0", "netns", peer.name)
    namespace.ip("link", "set", "eth0", "address", "aa:bb:cc:00:00:01", "mtu", "1400", "up")
    namespace.ip("addr", "add", "10.9.0.2/24", "dev", "eth0")
    namespace.ip("route", "add", "default", "via", "10.9.0.1")
    namespace.ip("neigh", "add", "10.9.0.1", "lladdr", "aa:bb:cc:00:00:02", "dev", "eth0")
    peer.ip("link", "set", "peer0", "address", "aa:bb:cc:00:00:02", "up")
    yield namespace
    peer.close()
    namespace.close()
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread.name == "netns"] == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.fixture
def taps(pod: Namespace) -> Iterator[list[Tap]]:
    found = open_spare_taps(pod.fd, 2)
    yield found
    for tap in found:
        os.close(tap.fd)


def _frame(text: bytes, *, to_peer: bool) -> bytes:
    peer, guest = bytes.fromhex("aabbcc000002"), bytes.fromhex("aabbcc000001")
    addresses = peer + guest if to_peer else guest + peer
    return addresses + struct.pack("!H", _ETHERTYPE) + text.ljust(46, b"\0")


def _await(descriptor: int, read: Callable[[], bytes], accept: Callable[[bytes], bool]) -> bytes:
    # The first packet that is accepted; the kernel's own (router solicitations, reports) come in between.
    deadline = time.monotonic() + _TIMEOUT_S
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            packet = read()
            if accept(packet):
                return packet
    raise AssertionError("The frame did not arrive")


def _cross(pod: Namespace, tap: Tap) -> None:
    peer = Namespace.__new__(Namespace)
    peer.fd = os.open(f"/run/netns/{pod.name}-peer", os.O_RDONLY | os.O_CLOEXEC)
    with peer.packet_socket("peer0") as outside:
        down = _frame(b"to the guest", to_peer=False)
        outside.send(down)
        packet = _await(tap.fd, lambda: os.read(tap.fd, 4096), lambda data: b"to the guest" in data)
        assert packet == _VNET_HEADER + down

        up = _frame(b"to the world", to_peer=True)
        os.write(tap.fd, _VNET_HEADER + up)
        assert _await(outside.fileno(), lambda: outside.recv(4096), lambda data: b"world" in data) == up
    os.close(peer.fd)


def test_taps_are_up_and_have_the_guest_s_macs(pod: Namespace, taps: list[Tap]) -> None:
    assert [(tap.name, tap.mac) for tap in taps] == [
        ("strato0", "02:53:54:52:00:00"),
        ("strato1", "02:53:54:52:00:01"),
    ]
    assert "UP" in pod.ip("link", "show", "strato1")


def test_taps_of_a_second_sandbox_in_the_same_namespace_are_an_error(pod: Namespace, taps: list[Tap]) -> None:
    with pytest.raises(HostError, match="strato0"):
        open_spare_taps(pod.fd, 1)

    assert len(taps) == 2


def test_taps_of_a_sandbox_that_is_just_ending_are_waited_for(
    pod: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = open_spare_taps(pod.fd, 1)
    waits: list[float] = []

    def end_of_the_other_sandbox(seconds: float) -> None:
        waits.append(seconds)
        while leaving:
            os.close(leaving.pop().fd)

    monkeypatch.setattr("shim.network.time.sleep", end_of_the_other_sandbox)

    (tap,) = open_spare_taps(pod.fd, 1)

    os.close(tap.fd)
    assert tap.name == "strato0"
    assert waits


def test_frames_cross_both_ways(pod: Namespace, taps: list[Tap]) -> None:
    plan = scan_and_mirror(pod.fd, taps)

    (interface,) = plan.interfaces
    assert (interface.name, interface.mac, interface.mtu) == ("eth0", "aa:bb:cc:00:00:01", 1400)
    assert interface.device_mac == taps[0].mac
    assert interface.addresses == (Address("10.9.0.2", 24),)
    assert [(route.destination, route.gateway) for route in plan.routes] == [("0.0.0.0/0", "10.9.0.1")]
    assert [neighbor.mac for neighbor in plan.neighbors] == ["aa:bb:cc:00:00:02"]
    assert "mtu 1400" in pod.ip("link", "show", "strato0")
    _cross(pod, taps[0])


def test_mirroring_again_replaces_what_was_there(pod: Namespace, taps: list[Tap]) -> None:
    pod.tc("qdisc", "add", "dev", "eth0", "clsact")

    first = scan_and_mirror(pod.fd, taps)
    second = scan_and_mirror(pod.fd, taps)

    assert first == second
    assert pod.tc("filter", "show", "dev", "eth0", "ingress").count("mirred") == 1
    _cross(pod, taps[0])


def test_unmirror_gives_the_interface_back(pod: Namespace, taps: list[Tap]) -> None:
    scan_and_mirror(pod.fd, taps)

    unmirror(pod.fd, ["eth0", "gone0"])

    assert "ingress" not in pod.tc("qdisc", "show")


def test_later_interface_takes_the_next_tap(pod: Namespace, taps: list[Tap]) -> None:
    scan_and_mirror(pod.fd, taps)
    pod.ip("link", "add", "net1", "type", "veth", "peer", "name", "peer1")
    pod.ip("link", "set", "net1", "up")

    plan = scan_and_mirror(pod.fd, taps)

    assert [interface.name for interface in plan.interfaces] == ["eth0", "net1"]


def test_too_many_interfaces_change_nothing(pod: Namespace, taps: list[Tap]) -> None:
    for number in (1, 2):
        pod.ip("link", "add", f"net{number}", "type", "veth", "peer", "name", f"p{number}")
        pod.ip("link", "set", f"net{number}", "up")

    with pytest.raises(HostError, match=r"'net2'.*spare_nics"):
        scan_and_mirror(pod.fd, taps)

    assert "ingress" not in pod.tc("qdisc", "show")


def test_namespace_without_interfaces_needs_no_pyroute2(pod: Namespace) -> None:
    pod.ip("link", "del", "eth0")
    script = (
        "import sys\nfrom shim.network import open_spare_taps, scan_and_mirror\n"
        f"fd = open('/run/netns/{pod.name}')\ntaps = open_spare_taps(fd.fileno(), 1)\n"
        "assert 'shim.network_plan' not in sys.modules\n"
        "print(scan_and_mirror(fd.fileno(), taps), 'pyroute2' in sys.modules, 'asyncio' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == f"{NetworkPlan()} False False"


def test_host_s_namespace_is_never_touched(taps: list[Tap]) -> None:
    with Path("/proc/self/ns/net").open() as host:
        with pytest.raises(SpecRefusedError, match="is the host's"):
            open_spare_taps(host.fileno(), 1)
        with pytest.raises(SpecRefusedError, match="is the host's"):
            scan_and_mirror(host.fileno(), taps)

    assert not Path("/sys/class/net/strato0").exists()


def test_descriptor_that_is_no_namespace_is_an_error() -> None:
    with (
        Path("/dev/null").open() as file,
        pytest.raises(HostError, match="Cannot set up the sandbox's network"),
    ):
        scan_and_mirror(file.fileno(), [])
