"""A VM of Strato's own guest image, driven as the shim does it, but without a shim: hello, then RPCs."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from shim.agent_proto.client import HELLO_PORT, AgentClient, answer_hello
from shim.errors import ShimError
from vmm import paths
from vmm.config import VmConfig, VsockConfig
from vmm.errors import HostError, QmpError

from .vm import DEADLINE_S, Vm, VmFactory, VmFailureError, with_boot


class AgentVm:
    """The VM and its agent."""

    def __init__(self, vm: Vm, agent: AgentClient, vsock: Path) -> None:
        self.vm = vm
        self.agent = agent
        self.vsock = vsock


@asynccontextmanager
async def boot_agent(vms: VmFactory, config: VmConfig) -> AsyncIterator[AgentVm]:
    """Boot the configuration's VM with strato-agent in the place of the tests' own init; the agent is
    connected. Raises VmFailureError with the console when it does not come.
    """
    vsock = config.runtime_dir / "v.sock"
    config = replace(config, vsock=VsockConfig(socket=vsock))
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.setblocking(False)
        listener.bind(f"{vsock}_{HELLO_PORT}")
        listener.listen()
        vm = vms.start(with_boot(config, initrd=paths.initramfs().resolve()))
        try:
            async with asyncio.timeout(DEADLINE_S):
                hello, _ = await loop.sock_accept(listener)
                stack.enter_context(hello)
                await answer_hello(hello, timeout_s=DEADLINE_S)
                agent = await AgentClient.connect(str(vsock))
        except (TimeoutError, ShimError) as error:
            raise VmFailureError(f"The agent did not come up\n{vm.describe()}\n{console(vm)}") from error
        stack.callback(agent.close)
        yield AgentVm(vm, agent, vsock)


def console(vm: Vm) -> str:
    """The end of what the guest has printed, or why that is not known."""
    try:
        with vm.qmp() as qmp:
            return str(qmp.execute("x-strato-console-tail"))
    except (HostError, QmpError) as error:
        return str(error)
