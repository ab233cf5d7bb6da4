"""The network of a sandbox: taps beside the interfaces that CNI or docker made, and what the guest is told.

Called by the shim: `open_spare_taps` before the VM starts (imports nothing but vmm.sys), `scan_and_mirror`
at Start, when the network namespace holds what it will hold, and again whenever an interface may have come
or gone. Every frame that arrives at an interface is redirected to its tap and the other way round (tc), so
the guest has the interface's MAC and addresses as its own and the namespace's own stack sees nothing of them.

The only user of pyroute2, which is imported when there is an interface (100 ms, 13 MiB). Its namespace
functions fork, so it is used in a thread that enters the namespace first and ends afterwards. Taps live as
long as their descriptors; redirections live as long as the interfaces, or until `unmirror`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vmm.record import record

from .errors import HostError, ShimError, SpecRefusedError

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .network_plan import Link, NetworkPlan

    _Result = TypeVar("_Result")

_CLONE_NEWNET = 0x40000000  # linux/sched.h
# linux/if_ether.h, pkt_sched.h
_ETH_P_ALL = 3
_INGRESS_HANDLE = 0xFFFF0000
_TAP_PREFIX = "strato"
# Locally administered, "STR" in ASCII, then the tap's number.
_MAC_PREFIX = "02:53:54:52:00"
_TAPS_MAX = 32  # slots of the microvm board
_LEAVING_TAP_S = 1.0
"""How long the taps of a sandbox that has ended in this namespace may take to go."""


@record(frozen=True)
class Tap:
    """The host end of a guest NIC. `fd` belongs to whoever asked for it; `mac` is the NIC's at boot."""

    fd: int
    name: str
    mac: str


def open_spare_taps(netns_fd: int, count: int) -> list[Tap]:
    """Makes `count` taps, up, in a network namespace.

    Raises SpecRefusedError for the host's own namespace, whose interfaces must stay with the host, and
    HostError; then none is left.
    """
    _refuse_host(netns_fd)
    if not 0 <= count <= _TAPS_MAX:
        raise HostError(f"Cannot give a sandbox {count} network devices: at most {_TAPS_MAX} (spare_nics)")
    taps: list[Tap] = []
    try:
        for number in range(count):
            name = f"{_TAP_PREFIX}{number}"
            taps.append(Tap(_open_tap(netns_fd, name), name, f"{_MAC_PREFIX}:{number:02x}"))
    except OSError as error:
        for tap in taps:
            os.close(tap.fd)
        raise HostError(
            f"Cannot make tap {name} in the sandbox's network namespace (is the namespace another sandbox's?)"
        ) from error
    return taps


def _open_tap(netns_fd: int, name: str) -> int:
    import vmm.sys

    deadline = time.monotonic() + _LEAVING_TAP_S
    while True:
        try:
            return vmm.sys.open_tap(netns_fd, name)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)  # the kernel tells nobody that may ask here


def scan_and_mirror(netns_fd: int, taps: Sequence[Tap]) -> NetworkPlan:
    """Connects every interface of the namespace with a tap and says how the guest must set them up.

    May be called again: what an earlier call did is replaced. Blocks for some milliseconds, so not to be
    called from the event loop. Raises SpecRefusedError as `open_spare_taps` does, and HostError, for one when
    there are more interfaces than taps.
    """
    from .network_plan import RT_TABLE_MAIN, NetworkPlan, plan_network, read_link

    _refuse_host(netns_fd)

    def act() -> NetworkPlan:
        if not _interfaces_beside({"lo", *(tap.name for tap in taps)}):
            return NetworkPlan()
        with _netlink() as netlink:
            return mirror(netlink)

    def mirror(netlink: Any) -> NetworkPlan:
        links = [read_link(message) for message in netlink.get_links()]
        plan = plan_network(
            links,
            taps,
            addresses=list(netlink.get_addr()),
            routes=list(netlink.get_routes(table=RT_TABLE_MAIN)),
            neighbors=list(netlink.get_neighbours()),
        )
        by_name = {link.name: link for link in links}
        for interface, tap in zip(plan.interfaces, taps, strict=False):
            _connect(netlink, by_name[interface.name], by_name[tap.name])
        return plan

    return _in_namespace(netns_fd, act)


def unmirror(netns_fd: int, names: Iterable[str]) -> None:
    """Ends the redirection of the named interfaces, those that are still there. Raises HostError."""
    from .network_plan import read_link

    wanted = set(names)

    def act() -> None:
        with _netlink() as netlink:
            for link in [read_link(message) for message in netlink.get_links()]:
                if link.name in wanted or link.name.startswith(_TAP_PREFIX):
                    _clear_ingress(netlink, link.index)

    _in_namespace(netns_fd, act)


def _refuse_host(netns_fd: int) -> None:
    found = os.fstat(netns_fd)
    for own in ("/proc/self/ns/net", "/proc/1/ns/net"):
        with suppress(OSError):
            if os.path.samestat(found, Path(own).stat()):
                raise SpecRefusedError(
                    "$.linux.namespaces", "The network namespace is the host's; a microVM cannot share it"
                )


def _connect(netlink: Any, link: Link, tap: Link) -> None:
    # The namespace's own IPv6 would speak to the guest through the tap.
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{tap.name}/disable_ipv6").write_text("1")
    netlink.link("set", index=tap.index, mtu=link.mtu, state="up")
    for source, target in ((link, tap), (tap, link)):
        _clear_ingress(netlink, source.index)
        netlink.tc("add", "ingress", source.index)
        netlink.tc(
            "add-filter",
            "u32",
            source.index,
            parent=_INGRESS_HANDLE,
            protocol=_ETH_P_ALL,
            prio=1,
            target=0x10000,
            keys=["0x0/0x0+0"],
            action=[{"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target.index}],
        )


def _clear_ingress(netlink: Any, index: int) -> None:
    from .network_plan import attributes_of

    for qdisc in list(netlink.get_qdiscs(index)):
        if qdisc["handle"] == _INGRESS_HANDLE:
            netlink.tc("del", attributes_of(qdisc)["TCA_KIND"], index)


class _NamespaceThread(threading.Thread):
    # A thread that enters a network namespace, does one thing there, and ends.

    def __init__(self, netns_fd: int, action: Callable[[], Any]) -> None:
        super().__init__(name="netns")
        self._netns_fd = netns_fd
        self._action = action
        self.results: list[Any] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            import vmm.sys

            vmm.sys.setns(self._netns_fd, _CLONE_NEWNET)
            self.results.append(self._action())
        except Exception as error:
            self.failure = error


def _netlink() -> Any:
    from pyroute2 import IPRoute

    return IPRoute()


def _interfaces_beside(known: set[str]) -> set[str]:
    # Spares a sandbox without a network the import of pyroute2 (proc(5), /proc/net/dev).
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines} - known


def _in_namespace(netns_fd: int, action: Callable[[], _Result]) -> _Result:
    thread = _NamespaceThread(netns_fd, action)
    thread.start()
    thread.join()
    if isinstance(thread.failure, ShimError):
        raise thread.failure
    if thread.failure is not None:
        reason = f"Cannot set up the sandbox's network: {thread.failure}"
        raise HostError(reason) from thread.failure
    result: _Result = thread.results[0]
    return result
