"""Containers and their processes: the only place where their state changes.

Owned by Sandbox, called by task.py (requests) and by Sandbox (what the guest reports). Rules that hold
here: a process's start event precedes its exit event; every process has exactly one exit; init's exit is
the last of its container; neither waits for a client's reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.record import record

from .agent_proto.generated import agent_pb2
from .endpoints import StdioRequest
from .errors import AlreadyExistsError, NotFoundError, ShimError, StateError
from .log import fields
from .protos.generated import events_pb2
from .states import Action, State, next_state
from .stdio import ProcessIo

if TYPE_CHECKING:
    from .sandbox import Sandbox

SYNTHETIC_PID_FIRST = 4194304 + 1
"""Exec pids that clients see: above PID_MAX_LIMIT of linux/threads.h, so never a process of the host."""

GUEST_PID_BASE = 1 << 30
"""Other guest processes in Pids: this plus their guest pid, apart from the execs' numbers."""

OOM_INTERVAL_S = 1.0
"""At most one OOM event per container in this time: the guest decides how many it reports."""

LAST_EXECS_TIMEOUT_S = 10.0
"""How long init's exit waits for the exits of its container's execs."""

KILLED = 128 + signal.SIGKILL

_log = logging.getLogger("shim.container")
_synthetic_pids: Iterator[int] = itertools.count(SYNTHETIC_PID_FIRST)


@record(frozen=True)
class ExitInfo:
    """How a process ended; `at_ns` since the Unix epoch."""

    status: int
    at_ns: int


class Process:
    """Init (empty exec_id) or an exec."""

    def __init__(self, container: Container, exec_id: str, io: ProcessIo, pid: int) -> None:
        self.container = container
        self.exec_id = exec_id
        self.io = io
        self.pid = pid
        """What clients see: the holder for init, a synthetic number for an exec."""
        self.state = State.CREATED
        self.exit: ExitInfo | None = None
        self.ended: asyncio.Future[ExitInfo] = asyncio.get_running_loop().create_future()
        self.early_exit: ExitInfo | None = None
        """An exit that was reported while Start was still on its way."""
        self.size: tuple[int, int] | None = None

    @property
    def is_exec(self) -> bool:
        """Whether this is an exec."""
        return bool(self.exec_id)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.container.id}/{self.exec_id}" if self.exec_id else self.container.id

    def apply(self, action: Action) -> None:
        """Change state by the table. Raises what the table says."""
        self.state = next_state(self.state, action, is_exec=self.is_exec, name=self.name)

    def check(self, action: Action) -> None:
        """Raise what the table says, changing nothing."""
        next_state(self.state, action, is_exec=self.is_exec, name=self.name)

    @property
    def runs(self) -> bool:
        """Whether an exit is still to come."""
        return self.state in (State.RUNNING, State.PAUSED)

    async def connect_io(self) -> None:
        """Connect the streams in the guest. Raises SandboxError."""
        await self.io.connect(
            str(self.container.sandbox.layout.vsock),
            f"{self.container.id}/{self.exec_id}",
            stdin_ended=self._stdin_ended,
        )

    def _stdin_ended(self, total: int) -> None:
        async def close() -> None:
            with contextlib.suppress(ShimError):
                await self.container.sandbox.agent.close_stdin(self.container.id, self.exec_id, total)

        self.container.sandbox.spawn(close())


class Container:
    """One container: its init, its execs, its holder."""

    def __init__(self, sandbox: Sandbox, container_id: str, bundle: Path) -> None:
        self.sandbox = sandbox
        self.id = container_id
        self.bundle = bundle
        self.holder_pid = 0
        self.execs: dict[str, Process] = {}
        self.init: Process
        self._held_exit: ExitInfo | None = None
        self._last_oom_s = -OOM_INTERVAL_S

    def oom_is_news(self) -> bool:
        """Whether an OOM report of now is to be told."""
        now = asyncio.get_running_loop().time()
        news = now - self._last_oom_s >= OOM_INTERVAL_S
        if news:
            self._last_oom_s = now
        return news

    def process(self, exec_id: str) -> Process:
        """The process of that name. Raises NotFoundError."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFoundError(f"Exec {exec_id} of container {self.id} does not exist") from None

    def processes(self) -> list[Process]:
        """Execs first, init last."""
        return [*self.execs.values(), self.init]

    async def start(self, exec_id: str) -> Process:
        """Run init or an exec; publish its start. Raises StateError and what the agent says."""
        process = self.process(exec_id)
        if process.is_exec and self.init.state is not State.RUNNING:
            raise StateError(f"Cannot start exec {process.name}: the container is {self.init.state.value}")
        process.apply(Action.START)
        try:
            if not process.is_exec:
                await self.sandbox.bring_up_network(self)
            else:
                await process.connect_io()
            process.io.start_input()
            await self.sandbox.agent.start_container(self.id, exec_id)
        except BaseException:
            # Nothing ran, so there is no exit event; waiters are released all the same.
            if process.state is State.STARTING:
                process.apply(Action.START_FAILED)
                self._end(process, ExitInfo(255, time.time_ns()))
                process.io.abandon()
                self.sandbox.spawn(self._kill_quietly(exec_id))
            raise
        process.apply(Action.STARTED)
        self._publish_start(process)
        if process.size is not None:
            rows, columns = process.size
            with contextlib.suppress(ShimError):
                await self.sandbox.agent.tty_win_resize(self.id, exec_id, rows, columns)
        if process.early_exit is not None:
            self._exited(process, process.early_exit)
        elif self.sandbox.failure is not None:
            self._exited(process, ExitInfo(KILLED, time.time_ns()))
        return process

    async def _kill_quietly(self, exec_id: str) -> None:
        # A Start that was cut short may have started the process after all.
        with contextlib.suppress(ShimError):
            await self.sandbox.agent.signal_process(self.id, exec_id, signal.SIGKILL)

    def _publish_start(self, process: Process) -> None:
        if process.is_exec:
            started = events_pb2.TaskExecStarted(
                container_id=self.id, exec_id=process.exec_id, pid=process.pid
            )
            self.sandbox.publish("/tasks/exec-started", started)
        else:
            self.sandbox.phases.mark("started")
            self.sandbox.publish("/tasks/start", events_pb2.TaskStart(container_id=self.id, pid=process.pid))
        self.sandbox.save()

    async def exec(self, exec_id: str, request: StdioRequest, process_json: bytes) -> None:
        """Register a further process. Raises AlreadyExistsError, StateError, SpecError, HostError."""
        from .oci import spec as oci_spec
        from .oci import transform

        if exec_id in self.execs:
            raise AlreadyExistsError(f"Exec {exec_id} of container {self.id} exists already")
        self.init.check(Action.EXEC)
        guest_process, dropped = transform.guest_process(oci_spec.process_from_json(process_json))
        for item in dropped:
            _log.info("exec: %s", item, extra=fields(container=self.id, exec=exec_id))
        io = ProcessIo(self.sandbox.hub, self.sandbox.reaper, request)
        process = Process(self, exec_id, io, next(_synthetic_pids))
        self.execs[exec_id] = process
        try:
            await io.open(container_id=self.id, namespace=self.sandbox.params.namespace)
            await self.sandbox.agent.exec_process(
                agent_pb2.ExecProcessRequest(
                    container_id=self.id,
                    exec_id=exec_id,
                    oci_process=json.dumps(guest_process).encode(),
                    stdio=wanted_stdio(io, guest_process),
                )
            )
        except BaseException:
            del self.execs[exec_id]
            io.close()
            raise
        self.sandbox.publish(
            "/tasks/exec-added", events_pb2.TaskExecAdded(container_id=self.id, exec_id=exec_id)
        )

    async def kill(self, exec_id: str, number: int, *, everything: bool) -> None:
        """Send a signal. Raises NotFoundError when the process has ended."""
        process = self.process(exec_id)
        process.check(Action.KILL)
        await self.sandbox.agent.signal_process(self.id, exec_id, number, everything=everything)

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Set the terminal's size; without a terminal nothing happens."""
        process = self.process(exec_id)
        if not process.io.request.terminal:
            return
        if process.state in (State.CREATED, State.STARTING):
            process.size = (rows, columns)
            return
        if process.runs:
            await self.sandbox.agent.tty_win_resize(self.id, exec_id, rows, columns)

    async def pause(self) -> None:
        """Freeze every process."""
        self.init.check(Action.PAUSE)
        await self.sandbox.agent.pause_container(self.id)
        self.init.apply(Action.PAUSE)
        self.sandbox.publish("/tasks/paused", events_pb2.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        """Thaw every process."""
        self.init.check(Action.RESUME)
        await self.sandbox.agent.resume_container(self.id)
        self.init.apply(Action.RESUME)
        self.sandbox.publish("/tasks/resumed", events_pb2.TaskResumed(container_id=self.id))
        await self.sandbox.set_clock()

    async def update(self, resources_json: bytes) -> None:
        """Change the limits inside the guest. Raises SpecError for what they cannot be."""
        from .oci import spec as oci_spec
        from .oci import transform

        self.init.check(Action.UPDATE)
        resources, dropped = transform.guest_resources(oci_spec.parse(resources_json, "$.linux.resources"))
        for item in dropped:
            _log.info("update: %s", item, extra=fields(container=self.id))
        await self.sandbox.agent.update_container(self.id, json.dumps(resources).encode())

    async def delete_exec(self, exec_id: str) -> Process:
        """Forget a finished or never started exec. Raises WrongStateError."""
        process = self.process(exec_id)
        process.check(Action.DELETE)
        await process.io.drain()
        process.io.close()
        if self.sandbox.alive:
            with contextlib.suppress(ShimError):
                await self.sandbox.agent.remove_container(self.id, exec_id)
        process.apply(Action.DELETE)
        self.execs.pop(exec_id, None)
        return process

    def reported_exit(self, exec_id: str, info: ExitInfo, counts: dict[str, int]) -> None:
        """The guest reports the death of a process. Unknown and repeated reports change nothing."""
        process = self.init if not exec_id else self.execs.get(exec_id)
        if process is None or process.exit is not None:
            return
        process.io.exited(counts)
        if process.state is State.STARTING:
            process.early_exit = info
            return
        self._exited(process, info)

    def sandbox_died(self) -> None:
        """The VM is gone: whatever was there is dead now, init last."""
        now = ExitInfo(KILLED, time.time_ns())
        for process in self.processes():
            process.io.abandon()
            created_init = process.state is State.CREATED and not process.is_exec
            if process.exit is None and (process.runs or created_init):
                self._publish_exit(process, process.early_exit or self._held(process) or now)
            elif process.exit is None and process.state is State.CREATED:
                process.apply(Action.EXIT)
                self._end(process, now)

    def _held(self, process: Process) -> ExitInfo | None:
        return None if process.is_exec else self._held_exit

    def _exited(self, process: Process, info: ExitInfo) -> None:
        if process.is_exec:
            self._publish_exit(process, info)
            if self._held_exit is not None and not self._live_execs():
                self._publish_exit(self.init, self._held_exit)
            return
        if not self._live_execs():
            self._publish_exit(process, info)
            return
        # Init's exit is published last: what is left of its container dies first.
        self._held_exit = info
        self.sandbox.spawn(self._end_execs())

    def _live_execs(self) -> list[Process]:
        return [process for process in self.execs.values() if process.runs or process.state is State.STARTING]

    async def _end_execs(self) -> None:
        with contextlib.suppress(ShimError):
            await self.sandbox.agent.signal_process(self.id, "", signal.SIGKILL, everything=True)
        waiting = [process.ended for process in self._live_execs()]
        if waiting:
            await asyncio.wait(waiting, timeout=LAST_EXECS_TIMEOUT_S)
        for process in self._live_execs():
            if process.runs:
                self._publish_exit(process, ExitInfo(KILLED, time.time_ns()))
        if self.init.exit is None and self._held_exit is not None:
            self._publish_exit(self.init, self._held_exit)

    def _publish_exit(self, process: Process, info: ExitInfo) -> None:
        if process.exit is not None:
            return
        process.apply(Action.EXIT)
        message = events_pb2.TaskExit(
            container_id=self.id,
            id=process.exec_id or self.id,
            pid=process.pid,
            exit_status=info.status,
        )
        message.exited_at.FromNanoseconds(info.at_ns)
        if not process.is_exec:
            self.sandbox.phases.mark("exited")
        self.sandbox.publish("/tasks/exit", message)
        self._end(process, info)
        _log.info("process ended", extra=fields(container=self.id, exec=process.exec_id, status=info.status))

    def _end(self, process: Process, info: ExitInfo) -> None:
        process.exit = info
        if not process.ended.done():
            process.ended.set_result(info)
        self.sandbox.save()


def wanted_stdio(io: ProcessIo, guest_process: dict[str, Any]) -> agent_pb2.Stdio:
    """Which streams the guest is to offer, and the first size of its terminal."""
    size = guest_process.get("consoleSize") or {}
    return agent_pb2.Stdio(
        terminal=io.request.terminal,
        stdin=io.wants("stdin"),
        stdout=io.wants("stdout"),
        stderr=io.wants("stderr"),
        rows=min(int(size.get("height", 0)), 65535),
        columns=min(int(size.get("width", 0)), 65535),
    )
