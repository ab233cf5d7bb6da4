"""The container has the interfaces that its network namespace has when it starts, and nothing else."""

from collections.abc import Iterator

import pytest

from tests.framework.ctr import Ctr
from tests.framework.netns import Network, unique_name
from tests.framework.runtime import Runtime

pytestmark = pytest.mark.containerd
BUSYBOX = "/bin/busybox"


@pytest.fixture
def network() -> Iterator[Network]:
    """Two namespaces without an interface between them."""
    with Network(unique_name()) as network:
        yield network


@pytest.fixture
def one_link(network: Network) -> Network:
    """One interface, and a default route."""
    network.link(0)
    network.default_route(0)
    return network


def joined(network: Network) -> tuple[str, str]:
    """The `ctr` option that joins the namespace."""
    return ("--with-ns", f"network:{network.path}")


def test_container_without_a_network_has_loopback_only(ctr: Ctr) -> None:
    script = "ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 > /dev/null && echo pong"
    result = ctr.run("sh", "-c", script)
    assert result.text.splitlines()[0] == "lo"
    assert len([line for line in result.text.splitlines() if line != "pong"]) == 1


@pytest.mark.usefixtures("strato_only")
def test_loopback_is_up_without_a_network(ctr: Ctr) -> None:
    assert "bytes from" in ctr.run("ping", "-c", "1", "-W", "2", "127.0.0.1").check().text


def test_interface_has_name_addresses_mac_and_mtu_of_the_host(ctr: Ctr, network: Network) -> None:
    network.link(0, mtu=1400)
    script = (
        "ls /sys/class/net; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip address show eth0"
    )
    text = ctr.run("sh", "-c", script, options=joined(network)).check().text
    assert text.splitlines()[:4] == ["eth0", "lo", network.mac(0), "1400"]
    assert "inet 10.99.0.2/24" in text
    assert "inet6 fd99::2/64" in text or "inet6 fd99:0::2/64" in text


def test_routes_are_those_of_the_host(ctr: Ctr, one_link: Network) -> None:
    lines = ctr.run("ip", "route", options=joined(one_link)).check().text.splitlines()
    assert any(line.startswith("default via 10.99.0.1 dev eth0") for line in lines)
    assert any(line.startswith("10.99.0.0/24 dev eth0") for line in lines)


def test_container_pings_its_peer(ctr: Ctr, one_link: Network) -> None:
    script = "ping -c 2 -W 5 10.99.0.1 && ping -6 -c 2 -W 5 fd99::1"
    text = ctr.run("sh", "-c", script, options=joined(one_link)).check().text
    assert text.count("0% packet loss") == 2


def test_peer_pings_the_container(ctr: Ctr, one_link: Network) -> None:
    ctr.run_detached("sleep", "1000", options=joined(one_link))
    text = one_link.from_peer(BUSYBOX, "ping", "-c", "3", "-W", "5", "10.99.0.2").check().text
    assert "bytes from" in text


def test_peer_reaches_a_server_in_the_container(ctr: Ctr, one_link: Network) -> None:
    server = ctr.run_arguments(
        ctr.new_id(), ["sh", "-c", "echo ready; nc -l -p 7 -e cat"], "--rm", *joined(one_link)
    )
    data = bytes(range(256)) * 4096
    with ctr.background(*server) as client:
        client.expect(b"ready")
        # The line comes before the socket listens; a refused connection is tried again.
        script = "for i in $(seq 100); do busybox nc -w 5 10.99.0.2 7 && exit; sleep 0.05; done; exit 1"
        assert one_link.from_peer("sh", "-c", script, stdin=data).check().stdout == data
        client.wait(timeout_s=20)


def test_container_reaches_a_server_of_the_peer(ctr: Ctr, one_link: Network) -> None:
    with one_link.serve_from_peer(BUSYBOX, "nc", "-l", "-p", "7", "-e", "/bin/echo", "from the peer"):
        script = "for i in $(seq 50); do nc -w 3 10.99.0.1 7 && exit; sleep 0.1; done; exit 1"
        assert ctr.run("sh", "-c", script, options=joined(one_link)).check().text == "from the peer"


def test_two_interfaces_keep_apart(ctr: Ctr, network: Network) -> None:
    network.link(0)
    network.link(1)
    script = "ping -c 1 -W 5 10.99.0.1 && ping -c 1 -W 5 10.99.1.1 && ls /sys/class/net"
    text = ctr.run("sh", "-c", script, options=joined(network)).check().text
    assert text.splitlines()[-3:] == ["eth0", "eth1", "lo"]
    assert text.count("0% packet loss") == 2


def test_namespace_is_left_as_it_was(ctr: Ctr, one_link: Network) -> None:
    before = one_link.links_inside()
    ctr.run("true", options=joined(one_link)).check()
    assert one_link.links_inside() == before
    filters = one_link.from_peer("tc", "-netns", one_link.inside, "filter", "show", "dev", "eth0", "ingress")
    assert filters.text == ""


def test_second_container_can_use_the_namespace_after_the_first(ctr: Ctr, one_link: Network) -> None:
    for _ in range(3):
        ctr.run("ping", "-c", "1", "-W", "5", "10.99.0.1", options=joined(one_link)).check()


def test_more_interfaces_than_the_guest_has_is_an_error_naming_one(
    ctr: Ctr, network: Network, runtime: Runtime
) -> None:
    if not runtime.is_strato:
        pytest.skip("only a microVM has a fixed number of interfaces")
    for number in range(3):
        network.link(number)
    result = ctr.run("true", options=joined(network))
    assert result.status != 0
    assert "eth2" in result.error_text
