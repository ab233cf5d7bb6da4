"""From what the container's network namespace holds at Start to what the guest has: taps, NICs, routes.

Called once per sandbox by Sandbox.bring_up_network. The netlink work runs on a thread, because pyroute2 is
slow to import and to use.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .agent_proto.generated import agent_pb2

if TYPE_CHECKING:
    from .agent_proto.client import AgentClient
    from .prepare import Phases
    from .vm import VirtualMachine


async def bring_up(
    holder_pid: int, taps: Sequence[Any], *, agent: AgentClient, vm: VirtualMachine, phases: Phases
) -> None:
    """Mirror every interface in the holder's netns to a tap and configure it in the guest.

    Raises HostError (an interface without a NIC left, netlink), RemoteError, SandboxError.
    """
    plan = await asyncio.to_thread(_scan, holder_pid, taps)
    phases.mark("network_scanned")
    for interface in plan.interfaces:
        index = next(number for number, tap in enumerate(taps) if tap.mac == interface.device_mac)
        await vm.execute("x-strato-set-link", {"id": f"net{index}", "up": True})
        await agent.update_interface(_interface(interface))
    if plan.routes or plan.neighbors:
        await agent.update_routes(_routes(plan))
    phases.mark("network_ready")


def _scan(holder_pid: int, taps: Sequence[Any]) -> Any:
    from . import network

    netns_fd = os.open(f"/proc/{holder_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return network.scan_and_mirror(netns_fd, taps)
    finally:
        os.close(netns_fd)


def _interface(interface: Any) -> agent_pb2.Interface:
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


def _routes(plan: Any) -> agent_pb2.UpdateRoutesRequest:
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
