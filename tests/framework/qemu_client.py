"""QEMU's own QMP client (qemu.qmp) against a VM of ours: what it takes for granted has to be there.

A test gives `drive` a script, which talks to the VM by a `QemuSession` and returns what the test looks at.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from qemu.qmp import EventListener, QMPClient

from .vm import DEADLINE_S, Vm

T = TypeVar("T")


class QemuSession:
    """One connection of qemu.qmp, all of whose events are kept until they are waited for."""

    def __init__(self, client: QMPClient, events: EventListener) -> None:
        self.client = client
        self._events = events

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command and return its answer. Raises ExecuteError with the server's words."""
        return await self.client.execute(command, dict(arguments or {}))

    async def event(self, name: str) -> dict[str, Any]:
        """Wait for an event and return its data; those before it are dropped."""
        while (event := await self._events.get())["event"] != name:
            pass
        data = event.get("data", {})
        assert isinstance(data, dict)
        return data


def drive(vm: Vm, script: Callable[[QemuSession], Awaitable[T]]) -> T:
    """Connect QEMU's client to a VM and run a script with it. Raises TimeoutError."""

    async def run() -> T:
        client = QMPClient("test")
        await client.connect(str(vm.qmp_path))
        try:
            with client.listener() as events:
                return await script(QemuSession(client, events))
        finally:
            with suppress(EOFError):  # the script has ended the VM
                await client.disconnect()

    return asyncio.run(asyncio.wait_for(run(), DEADLINE_S))
