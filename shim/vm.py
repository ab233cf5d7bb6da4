"""The strato-vmm process of a sandbox as the shim sees it: its life, its log, its QMP socket.

Owned by Sandbox. The process was started by prepare.py; here it is watched, asked and ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmm import untrusted
from vmm.errors import VmmError
from vmm.signals import killed_by

from . import launch, log
from .errors import SandboxError
from .layout import Layout

QMP_TIMEOUT_S = 5.0
CONSOLE_TAIL_BYTES = 4096
"""How much of the guest's console goes into an error message."""
EXIT_REPORT_BYTES = 1 << 20
"""More than any exit.json has: the console's tail is 64 KiB unless configured."""

_LOG_LINE_LIMIT = 8192
_log = logging.getLogger("shim.vm")
_vmm_log = logging.getLogger(log.VMM)
_LEVELS = {theirs: getattr(logging, ours.upper()) for ours, theirs in log.VMM_LEVELS.items()}


def forward(line: str) -> None:
    """Log a line of strato-vmm's with its level; what has none (a traceback) at level info."""
    word, _, text = line.partition(" ")
    level = _LEVELS.get(word)
    if level is None:
        _vmm_log.info("%s", line)
    else:
        _vmm_log.log(level, "%s", text)


class VirtualMachine:
    """One running strato-vmm."""

    def __init__(
        self, layout: Layout, reaper: launch.Reaper, *, pid: int, log_fd: int, tap_fds: Sequence[int]
    ) -> None:
        self.layout = layout
        self.pid = pid
        self._reaper = reaper
        self._log_fd = log_fd
        self._log_rest = b""
        self._tap_fds = list(tap_fds)
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Done with the wait status when the process has ended."""
        reaper.watch(pid, self._on_exit)
        os.set_blocking(log_fd, False)
        asyncio.get_running_loop().add_reader(log_fd, self._read_log)

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return not self.ended.done()

    def _on_exit(self, status: int) -> None:
        self._read_log()
        self._close_log()
        if not self.ended.done():
            self.ended.set_result(status)

    # strato-vmm's stderr: lines of "level message key=value"

    def _read_log(self) -> None:
        if self._log_fd < 0:
            return
        while True:
            try:
                data = os.read(self._log_fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close_log()
                return
            lines = (self._log_rest + data).split(b"\n")
            self._log_rest = lines.pop()[-_LOG_LINE_LIMIT:]
            for line in lines:
                forward(line[:_LOG_LINE_LIMIT].decode("utf-8", "replace"))

    def _close_log(self) -> None:
        if self._log_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._log_fd)
            os.close(self._log_fd)
            self._log_fd = -1
        self._close_taps()

    def _close_taps(self) -> None:
        # Whoever closes a tap last removes its interface, and waits until nothing in the kernel looks at it:
        # 20 ms for each (net/core/dev.c, netdev_run_todo). strato-vmm would spend them while its VM and
        # containerd wait for its end. When its log ends it has closed all that it had.
        while self._tap_fds:
            threading.Thread(target=os.close, args=(self._tap_fds.pop(),), name="tap", daemon=True).start()

    # asking

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run one QMP command. Raises SandboxError when the VMM refuses or is gone."""
        from vmm.qmp.client import AsyncQmpClient

        try:
            async with asyncio.timeout(QMP_TIMEOUT_S):
                client = AsyncQmpClient()
                await client.connect(self.layout.qmp)
                try:
                    return await client.execute(command, arguments)
                finally:
                    await client.close()
        except (OSError, VmmError, TimeoutError) as error:
            raise SandboxError(f"QMP command {command} failed: {error}") from error

    async def add_share(self, tag: str, name: str, directory: Path) -> None:
        """Show a folder as *name* in the share *tag*. Raises SandboxError."""
        arguments = {"tag": tag, "name": name, "directory": str(directory)}
        await self.execute("x-strato-add-share", arguments)

    async def remove_share(self, tag: str, name: str) -> None:
        """Take such a folder away; nothing keeps it busy afterwards. Raises SandboxError."""
        await self.execute("x-strato-remove-share", {"tag": tag, "name": name})

    async def console_tail(self) -> str:
        """The end of the guest's console, from the VMM or from what it left behind; may be empty."""
        if self.runs:
            with contextlib.suppress(SandboxError):
                answer = await self.execute("x-strato-console-tail")
                return str(answer.get("data", ""))[-CONSOLE_TAIL_BYTES:]
        return str(self.exit_report().get("console_tail", ""))[-CONSOLE_TAIL_BYTES:]

    def exit_report(self) -> dict[str, Any]:
        """exit.json; empty when the VMM was killed."""
        try:
            report = json.loads(untrusted.read_file(self.layout.exit_report, EXIT_REPORT_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return report if isinstance(report, dict) else {}

    def why_it_ended(self) -> str:
        """In words; call it when `ended` is done."""
        report = self.exit_report()
        if report.get("message"):
            return f"{report.get('kind', 'ended')}: {report['message']}"
        if report.get("kind"):
            return str(report["kind"])
        status = self.ended.result() if self.ended.done() else 0
        code = os.waitstatus_to_exitcode(status)
        return f"strato-vmm {killed_by(-code)}" if code < 0 else f"strato-vmm ended with status {code}"

    # ending

    async def end(self) -> None:
        """Kill the VM and everything it started. What is to be kept has left the guest before."""
        if self.runs:
            # It is the init of its pid namespace: everything in there dies with it.
            self._reaper.kill(self.pid)
            await asyncio.shield(self.ended)
        self._close_log()
