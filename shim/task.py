"""containerd's Task service (v2 and v3): messages in, calls on Sandbox and Container, messages out.

No logic here but translation. Errors leave as ShimError with their gRPC code (errors.py); the tables at the
end are what both transports serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from . import __version__, metrics
from .container import GUEST_PID_BASE, Container, Process
from .endpoints import StdioRequest
from .errors import InvalidArgumentError, NotFoundError, ShimError, UnimplementedError
from .protos.generated import events_pb2, runc_pb2, task_pb2, task_types_pb2
from .sandbox import Sandbox
from .states import State
from .ttrpc.service import Method, Services

PIDS_TIMEOUT_S = 2.0
"""For asking the guest; Pids answers without it, since containerd takes no answer for a leaked shim."""

_STATUS = {
    State.CREATED: task_types_pb2.CREATED,
    State.STARTING: task_types_pb2.CREATED,
    State.RUNNING: task_types_pb2.RUNNING,
    State.PAUSED: task_types_pb2.PAUSED,
    State.STOPPED: task_types_pb2.STOPPED,
    State.DELETED: task_types_pb2.STOPPED,
}


class TaskService:
    """The seventeen methods. *on_shutdown* is called when the shim is to end."""

    def __init__(self, sandbox: Sandbox, on_shutdown: Callable[[], None]) -> None:
        self._sandbox = sandbox
        self._on_shutdown = on_shutdown

    def services(self) -> Services:
        """The same methods under both names: the two versions differ in nothing else."""
        methods = {
            "Create": Method(task_pb2.CreateTaskRequest, self.create, self._take_back),
            "Start": Method(task_pb2.StartRequest, self.start),
            "Exec": Method(task_pb2.ExecProcessRequest, self.exec),
            "Kill": Method(task_pb2.KillRequest, self.kill),
            "Wait": Method(task_pb2.WaitRequest, self.wait),
            "Delete": Method(task_pb2.DeleteRequest, self.delete),
            "State": Method(task_pb2.StateRequest, self.state),
            "Pids": Method(task_pb2.PidsRequest, self.pids),
            "Connect": Method(task_pb2.ConnectRequest, self.connect),
            "ResizePty": Method(task_pb2.ResizePtyRequest, self.resize_pty),
            "CloseIO": Method(task_pb2.CloseIORequest, self.close_io),
            "Pause": Method(task_pb2.PauseRequest, self.pause),
            "Resume": Method(task_pb2.ResumeRequest, self.resume),
            "Update": Method(task_pb2.UpdateTaskRequest, self.update),
            "Stats": Method(task_pb2.StatsRequest, self.stats),
            "Checkpoint": Method(task_pb2.CheckpointTaskRequest, self.checkpoint),
            "Shutdown": Method(task_pb2.ShutdownRequest, self.shutdown),
        }
        return {"containerd.task.v2.Task": methods, "containerd.task.v3.Task": methods}

    async def create(self, request: task_pb2.CreateTaskRequest) -> task_pb2.CreateTaskResponse:
        """Prepare a container, not running yet; a missing binary fails here, without an exit event."""
        from .storage import RootfsMount

        if request.checkpoint:
            raise UnimplementedError("Restoring a container from a checkpoint is not implemented")
        if not request.id or not request.bundle:
            raise InvalidArgumentError("Create needs an id and a bundle")
        rootfs = [
            RootfsMount(mount.type, mount.source, mount.target, tuple(mount.options))
            for mount in request.rootfs
        ]
        stdio = StdioRequest(request.terminal, request.stdin, request.stdout, request.stderr)
        container = await self._sandbox.creation.create(request.id, Path(request.bundle), rootfs, stdio)
        event = events_pb2.TaskCreate(
            container_id=request.id,
            bundle=request.bundle,
            rootfs=request.rootfs,
            io=events_pb2.TaskIO(
                stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
            ),
            pid=container.holder_pid,
        )
        self._sandbox.publish("/tasks/create", event)
        return task_pb2.CreateTaskResponse(pid=container.holder_pid)

    async def _take_back(self, request: task_pb2.CreateTaskRequest) -> None:
        # containerd went in the middle of Create. When it was back it heard that there is no such container,
        # and 1.6 leaves it at that: nobody would ever delete the container or end this shim.
        with contextlib.suppress(ShimError):  # a Delete may have been faster
            await self.delete(task_pb2.DeleteRequest(id=request.id))
        if self._sandbox.idle:
            self._on_shutdown()

    async def start(self, request: task_pb2.StartRequest) -> task_pb2.StartResponse:
        """Run init or an exec."""
        process = await self._sandbox.container(request.id).start(request.exec_id)
        return task_pb2.StartResponse(pid=process.pid)

    async def exec(self, request: task_pb2.ExecProcessRequest) -> Empty:
        """Register an exec."""
        stdio = StdioRequest(request.terminal, request.stdin, request.stdout, request.stderr)
        if not request.exec_id:
            raise InvalidArgumentError("Exec needs an exec id")
        await self._sandbox.container(request.id).exec(request.exec_id, stdio, request.spec.value)
        return Empty()

    async def kill(self, request: task_pb2.KillRequest) -> Empty:
        """Signal a process, or all of the container."""
        container = self._sandbox.container(request.id)
        await container.kill(request.exec_id, request.signal, everything=request.all)
        return Empty()

    async def wait(self, request: task_pb2.WaitRequest) -> task_pb2.WaitResponse:
        """Answer when the process has ended; also after that, until it is deleted."""
        process = self._process(request.id, request.exec_id)
        # Not awaited itself: a waiter whose deadline passes must not cancel it for the others.
        info = await asyncio.shield(process.ended)
        answer = task_pb2.WaitResponse(exit_status=info.status)
        answer.exited_at.FromNanoseconds(info.at_ns)
        return answer

    async def delete(self, request: task_pb2.DeleteRequest) -> task_pb2.DeleteResponse:
        """Remove a container or an exec that has ended or never ran."""
        if request.exec_id:
            process = await self._sandbox.container(request.id).delete_exec(request.exec_id)
        else:
            process = await self._sandbox.creation.delete(request.id)
        answer = task_pb2.DeleteResponse(pid=process.pid)
        if process.exit is not None:
            answer.exit_status = process.exit.status
            answer.exited_at.FromNanoseconds(process.exit.at_ns)
        if not request.exec_id:
            event = events_pb2.TaskDelete(
                container_id=request.id, id=request.id, pid=process.pid, exit_status=answer.exit_status
            )
            event.exited_at.CopyFrom(answer.exited_at)
            self._sandbox.publish("/tasks/delete", event)
        return answer

    async def state(self, request: task_pb2.StateRequest) -> task_pb2.StateResponse:
        """What a process is doing."""
        container = self._sandbox.container(request.id)
        process = container.process(request.exec_id)
        stdio = process.io.request
        answer = task_pb2.StateResponse(
            id=request.id,
            exec_id=request.exec_id,
            bundle=str(container.bundle),
            pid=process.pid,
            status=_STATUS[process.state],
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
        )
        paused = container.init.state is State.PAUSED and process.state is State.RUNNING
        if paused:
            answer.status = task_types_pb2.PAUSED
        if process.exit is not None:
            answer.exit_status = process.exit.status
            answer.exited_at.FromNanoseconds(process.exit.at_ns)
        return answer

    async def pids(self, request: task_pb2.PidsRequest) -> task_pb2.PidsResponse:
        """The task's pid first, then everything else that runs in the container."""
        container = self._sandbox.container(request.id)
        answer = task_pb2.PidsResponse()
        answer.processes.add(pid=container.init.pid)
        for process in container.execs.values():
            if process.runs:
                entry = answer.processes.add(pid=process.pid)
                details = runc_pb2.ProcessDetails(exec_id=process.exec_id)
                entry.info.CopyFrom(
                    AnyMessage(type_url=details.DESCRIPTOR.full_name, value=details.SerializeToString())
                )
        if container.init.runs and self._sandbox.alive:
            try:
                guests = await self._sandbox.agent.list_processes(request.id, timeout_s=PIDS_TIMEOUT_S)
            except ShimError:
                return answer
            for guest in guests:
                if not guest.init and not guest.exec_id and 0 < guest.pid < GUEST_PID_BASE:
                    answer.processes.add(pid=GUEST_PID_BASE + guest.pid)
        return answer

    async def connect(self, request: task_pb2.ConnectRequest) -> task_pb2.ConnectResponse:
        """Who we are; never an error, also for an id that does not exist."""
        container = self._sandbox.containers.get(request.id)
        return task_pb2.ConnectResponse(
            shim_pid=os.getpid(), task_pid=container.init.pid if container else 0, version=__version__
        )

    async def resize_pty(self, request: task_pb2.ResizePtyRequest) -> Empty:
        """Set the size of a terminal."""
        container = self._sandbox.container(request.id)
        await container.resize(request.exec_id, min(request.height, 65535), min(request.width, 65535))
        return Empty()

    async def close_io(self, request: task_pb2.CloseIORequest) -> Empty:
        """End a process's input after what was written to it."""
        process = self._process(request.id, request.exec_id)
        if request.stdin:
            process.io.close_stdin()
        return Empty()

    async def pause(self, request: task_pb2.PauseRequest) -> Empty:
        """Freeze a container."""
        await self._sandbox.container(request.id).pause()
        return Empty()

    async def resume(self, request: task_pb2.ResumeRequest) -> Empty:
        """Thaw a container."""
        await self._sandbox.container(request.id).resume()
        return Empty()

    async def update(self, request: task_pb2.UpdateTaskRequest) -> Empty:
        """Change a container's limits in the guest; the size of the VM stays what it was."""
        await self._sandbox.container(request.id).update(request.resources.value)
        return Empty()

    async def stats(self, request: task_pb2.StatsRequest) -> task_pb2.StatsResponse:
        """Resource use, in the message of the host's cgroup version."""
        container: Container = self._sandbox.container(request.id)
        if container.init.state in (State.STOPPED, State.DELETED):
            raise NotFoundError(f"Container {request.id} has no cgroup: it is {container.init.state.value}")
        stats = await self._sandbox.agent.stats_container(request.id)
        return task_pb2.StatsResponse(stats=metrics.metrics(stats, cgroup_v2=metrics.host_has_cgroup_v2()))

    async def checkpoint(self, request: task_pb2.CheckpointTaskRequest) -> Empty:
        """Not yet."""
        raise UnimplementedError("Checkpoint is not implemented")

    async def shutdown(self, request: task_pb2.ShutdownRequest) -> Empty:
        """End the sandbox and the shim, unless a container is left."""
        if self._sandbox.idle:
            try:
                await self._sandbox.shut_down()
            finally:
                self._on_shutdown()
        return Empty()

    def _process(self, container_id: str, exec_id: str) -> Process:
        return self._sandbox.container(container_id).process(exec_id)
