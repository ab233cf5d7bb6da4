"""From what the container's network namespace holds at Start to what the guest has: taps, NICs, routes.

Owned by Sandbox, used once per sandbox. The netlink work runs on a thread, because pyroute2 is slow to
import and to use; where it is likely to be needed it is imported while the guest boots.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from .agent_proto.generated import agent_pb2
from .errors import ShimError, describe

if TYPE_CHECKING:
    from .agent_proto.client import AgentClient
    from .network_plan import Interface, NetworkPlan
    from .prepare import Preparation
    from .vm import VirtualMachine

_log = logging.getLogger("shim.guest_network")


class GuestNetwork:
    """The network of one sandbox: `preload`, `bring_up` at the first Start, `take_down` after the VM."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._done = False
        self._mirrored: list[str] = []
        self._netns_fd = -1

    async def preload(self) -> None:
        """Import what a scan needs, and for a namespace that may have interfaces what these need."""
        from . import network_plan  # noqa: F401

        if self._preparation.plan.netns_path:
            with contextlib.suppress(ImportError):
                await asyncio.to_thread(importlib.import_module, "pyroute2")

    async def bring_up(self, holder_pid: int, *, agent: AgentClient, vm: VirtualMachine) -> None:
        """Mirror every interface in the holder's netns to a tap and configure it in the guest, once.

        Raises HostError (an interface without a NIC left, netlink), RemoteError, SandboxError.
        """
        if self._done:
            return
        self._done = True
        try:
            await self._bring_up(holder_pid, agent, vm)
        except BaseException:
            self._done = False
            raise

    async def _bring_up(self, holder_pid: int, agent: AgentClient, vm: VirtualMachine) -> None:
        preparation = self._preparation
        if self._netns_fd < 0:
            self._netns_fd = os.open(f"/proc/{holder_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        plan = await asyncio.to_thread(_scan, self._netns_fd, preparation.taps)
        self._mirrored = [interface.name for interface in plan.interfaces]
        preparation.phases.mark("network_scanned")
        macs = [tap.mac for tap in preparation.taps]
        for interface in plan.interfaces:
            name = f"net{macs.index(interface.device_mac)}"
            await vm.execute("x-strato-set-link", {"id": name, "up": True})
            await agent.update_interface(_interface(interface))
        if plan.routes or plan.neighbors:
            await agent.update_routes(_routes(plan))
        preparation.phases.mark("network_ready")

    async def take_down(self) -> None:
        """Leave a network namespace that is not ours as it was found."""
        if self._mirrored and self._preparation.plan.netns_path:
            try:
                await asyncio.to_thread(_unmirror, self._netns_fd, self._mirrored)
            except (OSError, ShimError) as error:
                _log.warning("interfaces stay redirected: %s", describe(error))
        if self._netns_fd >= 0:
            os.close(self._netns_fd)
            self._netns_fd = -1


def _scan(netns_fd: int, taps: Any) -> NetworkPlan:
    from . import network

    return network.scan_and_mirror(netns_fd, taps)


def _unmirror(netns_fd: int, names: list[str]) -> None:
    from . import network

    network.unmirror(netns_fd, names)


def _interface(interface: Interface) -> agent_pb2.Interface:
    return agent_pb2.Interface(
        device_mac=interface.device_mac,
        name=interface.name,
        mac=interface.mac,
        mtu=interface.mtu,
        addresses=[
            agent_pb2.Address(address=address.address, prefix=address.prefix)
            for address in interface.addresses
        ],
        up=interface.up,
    )


def _routes(plan: NetworkPlan) -> agent_pb2.UpdateRoutesRequest:
    return agent_pb2.UpdateRoutesRequest(
        routes=[
            agent_pb2.Route(
                destination=route.destination,
                gateway=route.gateway,
                device=route.device,
                source=route.source,
                scope=route.scope,
                metric=route.metric,
                onlink=route.onlink,
            )
            for route in plan.routes
        ],
        neighbors=[
            agent_pb2.Neighbor(
                address=neighbor.address, device=neighbor.device, mac=neighbor.mac, state=neighbor.state
            )
            for neighbor in plan.neighbors
        ],
    )
