"""What a network namespace holds -> what the guest is told to build: rtnetlink messages -> NetworkPlan.

The pure part of `network`, imported with it at Start. The plan's classes mirror those of agent.proto.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmm.record import record

from .errors import HostError
from .network import Tap

# linux/if.h, if_arp.h
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_ARPHRD_ETHER = 1
# linux/rtnetlink.h, neighbour.h
RT_TABLE_MAIN = 254
_RTN_UNICAST, _RTPROT_KERNEL, _RTNH_F_ONLINK = 1, 2, 4
_NUD_PERMANENT = 0x80


@record(frozen=True)
class Address:
    """As in agent.proto."""

    address: str
    prefix: int


@record(frozen=True)
class Interface:
    """As in agent.proto: the NIC that booted with `device_mac` becomes `name` with `mac`."""

    device_mac: str
    name: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...]
    up: bool = True


@record(frozen=True)
class Route:
    """As in agent.proto; `destination` is a network, 0.0.0.0/0 or ::/0 for the default."""

    destination: str
    gateway: str
    device: str
    source: str
    scope: int
    metric: int
    onlink: bool


@record(frozen=True)
class Neighbor:
    """As in agent.proto."""

    address: str
    device: str
    mac: str
    state: int


@record(frozen=True)
class NetworkPlan:
    """What the guest's network has to look like; routes in an order in which they can be added.

    `notes` are sentences about what could not be carried over, for the log.
    """

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbors: tuple[Neighbor, ...] = ()
    notes: tuple[str, ...] = ()


@record(frozen=True)
class Link:
    """A network interface as the kernel describes it."""

    index: int
    name: str
    mac: str
    mtu: int
    flags: int
    kind: int

    @property
    def up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & _IFF_UP)


def plan_network(
    links: Sequence[Link],
    taps: Sequence[Tap],
    *,
    addresses: Sequence[Any],
    routes: Sequence[Any],
    neighbors: Sequence[Any],
) -> NetworkPlan:
    """Links and rtnetlink messages -> plan. Raises HostError."""
    own = {tap.name for tap in taps}
    missing = own - {link.name for link in links}
    if missing:
        raise HostError(f"Tap {min(missing)} has vanished from the sandbox's network namespace")
    usable = _addresses(addresses)
    chosen = [
        link
        for link in sorted(links, key=lambda link: link.index)
        if not link.flags & _IFF_LOOPBACK and link.name not in own and (link.up or usable.get(link.index))
    ]
    for link in chosen:
        if link.kind != _ARPHRD_ETHER or not link.mac:
            raise HostError(
                f"Network interface {link.name!r} is not an Ethernet device (type {link.kind}) "
                "and cannot be given to a guest"
            )
    if len(chosen) > len(taps):
        raise HostError(
            f"Network interface {chosen[len(taps)].name!r} has no device left in the guest: there are "
            f"{len(chosen)} interfaces, but spare_nics is {len(taps)}"
        )
    names = {link.index: link.name for link in chosen}
    notes: list[str] = []
    return NetworkPlan(
        tuple(
            Interface(tap.mac, link.name, link.mac, link.mtu, tuple(usable.get(link.index, ())))
            for link, tap in zip(chosen, taps, strict=False)
        ),
        _routes(routes, names, usable, notes),
        _neighbors(neighbors, names),
        tuple(notes),
    )


def _addresses(messages: Iterable[Any]) -> dict[int, list[Address]]:
    # Addresses by interface, but link-local IPv6: the guest's kernel makes its own from the same MAC.
    found: dict[int, list[Address]] = {}
    for message in messages:
        attributes = attributes_of(message)
        # With a peer, IFA_ADDRESS is the peer's (linux/if_addr.h).
        text = attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")
        if not text:
            continue
        address = ipaddress.ip_address(text)
        if address.version == 6 and address.is_link_local:
            continue
        found.setdefault(message["index"], []).append(Address(str(address), message["prefixlen"]))
    return found


def _routes(
    messages: Iterable[Any],
    names: Mapping[int, str],
    addresses: Mapping[int, list[Address]],
    notes: list[str],
) -> tuple[Route, ...]:
    found: list[Route] = []
    for message in messages:
        attributes = attributes_of(message)
        if attributes.get("RTA_TABLE", message["table"]) != RT_TABLE_MAIN:
            continue
        any_address = "::" if message["family"] == 10 else "0.0.0.0"  # AF_INET6
        target = ipaddress.ip_network(f"{attributes.get('RTA_DST', any_address)}/{message['dst_len']}")
        index, gateway = attributes.get("RTA_OIF", 0), attributes.get("RTA_GATEWAY", "")
        if message["type"] != _RTN_UNICAST or "RTA_MULTIPATH" in attributes or "RTA_VIA" in attributes:
            notes.append(f"The route to {target} is not simple enough for the guest and is left out")
            continue
        if index not in names or _made_by_kernel(message, target, addresses.get(index, ())):
            continue
        found.append(
            Route(
                destination=str(target),
                gateway=gateway,
                device=names[index],
                source=attributes.get("RTA_PREFSRC", ""),
                scope=message["scope"],
                metric=attributes.get("RTA_PRIORITY", 0),
                onlink=bool(message["flags"] & _RTNH_F_ONLINK),
            )
        )
    # A gateway must be reachable when its route is added.
    return tuple(sorted(found, key=lambda route: bool(route.gateway)))


def _made_by_kernel(message: Any, target: Any, addresses: Iterable[Address]) -> bool:
    # The guest's kernel adds the route to the network of an address by itself.
    if message["proto"] != _RTPROT_KERNEL:
        return False
    if target.version == 6 and (target.is_link_local or target.is_multicast):
        return True
    return any(
        ipaddress.ip_interface(f"{address.address}/{address.prefix}").network == target
        for address in addresses
    )


def _neighbors(messages: Iterable[Any], names: Mapping[int, str]) -> tuple[Neighbor, ...]:
    found = []
    for message in messages:
        attributes = attributes_of(message)
        index, address, mac = message["ifindex"], attributes.get("NDA_DST"), attributes.get("NDA_LLADDR")
        if index in names and message["state"] & _NUD_PERMANENT and address and mac:
            found.append(Neighbor(address, names[index], mac, message["state"]))
    return tuple(found)


def read_link(message: Any) -> Link:
    """An RTM_NEWLINK message of pyroute2 -> Link."""
    attributes = attributes_of(message)
    return Link(
        index=message["index"],
        name=attributes["IFLA_IFNAME"],
        mac=attributes.get("IFLA_ADDRESS") or "",
        mtu=attributes.get("IFLA_MTU", 1500),
        flags=message["flags"],
        kind=message["ifi_type"],
    )


def attributes_of(message: Any) -> dict[str, Any]:
    """The attributes of a pyroute2 message by name; of repeated ones the last."""
    return {attribute[0]: attribute[1] for attribute in message["attrs"]}
