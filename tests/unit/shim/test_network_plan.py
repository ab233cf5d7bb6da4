"""rtnetlink messages, as pyroute2 gives them, to a plan."""

from typing import Any

import pytest

from shim.errors import HostError
from shim.network import Tap
from shim.network_plan import Address, Interface, Link, Neighbor, NetworkPlan, Route, plan_network

pytestmark = pytest.mark.unit

_TAPS = [Tap(10, "strato0", "02:53:54:52:00:00"), Tap(11, "strato1", "02:53:54:52:00:01")]
_TAP_LINKS = [Link(8, "strato0", "0a:00", 1500, 0x1003, 1), Link(9, "strato1", "0a:01", 1500, 0x1003, 1)]
_LO = Link(1, "lo", "00:00:00:00:00:00", 65536, 0x9, 772)
_ETH0 = Link(3, "eth0", "aa:bb:cc:00:00:03", 1450, 0x11043, 1)


def _address(index: int, text: str, prefix: int) -> dict[str, Any]:
    return {"index": index, "prefixlen": prefix, "attrs": [("IFA_ADDRESS", text), ("IFA_LOCAL", text)]}


def _route(target: str = "", *, index: int = 3, **changes: Any) -> dict[str, Any]:
    destination, _, length = target.partition("/")
    attributes: list[tuple[str, Any]] = [("RTA_TABLE", 254), ("RTA_OIF", index)]
    if destination:
        attributes.append(("RTA_DST", destination))
    attributes += changes.pop("attrs", [])
    family = 10 if ":" in target else 2
    message = {"family": family, "dst_len": int(length or 0), "table": 254, "type": 1, "proto": 3, "scope": 0}
    return {**message, "flags": 0, **changes, "attrs": attributes}


def _plan(
    links: list[Link],
    *,
    addresses: list[Any] | None = None,
    routes: list[Any] | None = None,
    neighbors: list[Any] | None = None,
) -> NetworkPlan:
    return plan_network(
        [_LO, *links, *_TAP_LINKS],
        _TAPS,
        addresses=addresses or [],
        routes=routes or [],
        neighbors=neighbors or [],
    )


def test_interface_keeps_name_mac_mtu_and_addresses() -> None:
    addresses = [
        _address(1, "127.0.0.1", 8),
        _address(3, "10.4.0.7", 24),
        _address(3, "fd00::7", 64),
        _address(3, "fe80::1", 64),
    ]

    plan = _plan([_ETH0], addresses=addresses)

    assert plan.interfaces == (
        Interface(
            "02:53:54:52:00:00",
            "eth0",
            "aa:bb:cc:00:00:03",
            1450,
            (Address("10.4.0.7", 24), Address("fd00::7", 64)),
        ),
    )


def test_templates_of_tunnels_are_ignored() -> None:
    tunnels = [
        Link(2, "tunl0", "00:00:00:00", 1480, 0x80, 768),
        Link(4, "sit0", "00:00:00:00", 1480, 0x80, 776),
    ]

    assert _plan(tunnels) == NetworkPlan()


def test_interface_that_is_down_but_has_an_address_counts() -> None:
    plan = _plan([Link(5, "net1", "aa:00", 1500, 0x1002, 1)], addresses=[_address(5, "10.0.0.1", 8)])

    assert [interface.name for interface in plan.interfaces] == ["net1"]


def test_interfaces_take_taps_in_the_order_of_their_index() -> None:
    plan = _plan([Link(7, "net1", "aa:07", 1500, 0x1043, 1), _ETH0])

    assert [(i.name, i.device_mac[-2:]) for i in plan.interfaces] == [("eth0", "00"), ("net1", "01")]


def test_more_interfaces_than_taps_names_the_one_and_the_option() -> None:
    links = [_ETH0, *(Link(index, f"net{index}", "aa:00", 1500, 0x1043, 1) for index in (5, 6))]

    with pytest.raises(HostError, match=r"'net6' .*3 interfaces, but spare_nics is 2"):
        _plan(links)


def test_interface_that_is_not_ethernet_is_named() -> None:
    with pytest.raises(HostError, match="'wg0' is not an Ethernet device"):
        _plan([Link(5, "wg0", "", 1420, 0x91, 65534)])


def test_vanished_tap_is_an_error() -> None:
    with pytest.raises(HostError, match="strato0 has vanished"):
        plan_network([_LO, _ETH0], _TAPS, addresses=[], routes=[], neighbors=[])


def test_routes_come_in_an_order_in_which_they_can_be_added() -> None:
    routes = [
        _route(attrs=[("RTA_GATEWAY", "169.254.1.1"), ("RTA_PRIORITY", 100)], flags=4),
        _route("169.254.1.1/32", scope=253),
        _route("::/0", attrs=[("RTA_GATEWAY", "fd00::1")]),
    ]

    plan = _plan([_ETH0], routes=routes)

    assert plan.routes == (
        Route("169.254.1.1/32", "", "eth0", "", 253, 0, False),
        Route("0.0.0.0/0", "169.254.1.1", "eth0", "", 0, 100, True),
        Route("::/0", "fd00::1", "eth0", "", 0, 0, False),
    )


def test_routes_that_the_guest_makes_itself_are_left_out() -> None:
    addresses = [_address(3, "10.4.0.7", 24), _address(3, "10.5.0.7", 32), _address(3, "fd00::7", 64)]
    routes = [
        _route("10.4.0.0/24", proto=2, scope=253, attrs=[("RTA_PREFSRC", "10.4.0.7")]),
        _route("10.5.0.1/32", proto=2, scope=253),
        _route("10.4.0.0/24", proto=4),
        _route("fd00::/64", proto=2),
        _route("fe80::/64", proto=2),
    ]

    plan = _plan([_ETH0], addresses=addresses, routes=routes)

    assert [(route.destination, route.scope) for route in plan.routes] == [
        ("10.5.0.1/32", 253),
        ("10.4.0.0/24", 0),
    ]


def test_routes_of_other_tables_and_interfaces_are_left_out() -> None:
    routes = [_route("10.0.0.0/8", table=255, attrs=[("RTA_TABLE", 255)]), _route("10.0.0.0/8", index=1)]

    assert _plan([_ETH0], routes=routes).routes == ()


def test_route_that_cannot_be_told_is_noted() -> None:
    plan = _plan([_ETH0], routes=[_route("10.0.0.0/8", type=6), _route(attrs=[("RTA_MULTIPATH", [])])])

    assert plan.routes == ()
    assert len(plan.notes) == 2
    assert "10.0.0.0/8" in plan.notes[0]


def test_permanent_neighbors_are_kept() -> None:
    def neighbor(state: int, address: str, index: int = 3) -> dict[str, Any]:
        attributes = [("NDA_DST", address), ("NDA_LLADDR", "aa:bb:cc:00:00:09")]
        return {"ifindex": index, "state": state, "attrs": attributes}

    plan = _plan(
        [_ETH0], neighbors=[neighbor(0x80, "10.4.0.1"), neighbor(2, "10.4.0.2"), neighbor(0x80, "::1", 1)]
    )

    assert plan.neighbors == (Neighbor("10.4.0.1", "eth0", "aa:bb:cc:00:00:09", 0x80),)
