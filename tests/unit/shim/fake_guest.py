"""A sandbox whose guest is in the test's hands: real Sandbox, task service and pump, no VM.

The VM is a `sleep` beside a QMP server, the agent a ttrpc server on the unix socket where vsock would be.
What the guest does (answers, exits, lies) is set on `FakeAgent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf.message import Message

from shim import events, launch
from shim.agent_proto import client
from shim.agent_proto.generated import agent_pb2
from shim.config import Settings
from shim.errors import RemoteError, ShimError
from shim.layout import Layout
from shim.params import ShimParams
from shim.prepare import Preparation, _listen
from shim.protos.generated import events_pb2, task_pb2
from shim.sandbox import Sandbox
from shim.task import TaskService
from shim.ttrpc.server import TtrpcServer
from shim.ttrpc.service import Method

DEADLINE_S = 20.0
EXEC_SPEC = b'{"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}'


class FakeAgent:
    """Serves agent.proto. `behaviour[name]` may await, raise a ShimError, or return another answer."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.calls: list[tuple[str, Any]] = []
        self.behaviour: dict[str, Callable[[Any], Awaitable[Message | None]]] = {}
        self.streams: dict[str, socket.socket] = {}
        self.hello = client.frame(agent_pb2.Hello(protocol_version=1).SerializeToString())
        self._events: list[agent_pb2.Event] = []
        self._news = asyncio.Condition()
        self._server = TtrpcServer({"strato.agent.v1.Agent": self._methods()})
        self._tasks: set[asyncio.Task[None]] = set()
        self._hello_socket: socket.socket | None = None
        self._listener = _listen(layout.vsock)

    def _methods(self) -> dict[str, Method]:
        service = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
        return {
            method.name: Method(
                getattr(agent_pb2, method.input_type.name),
                self._method(method.name, getattr(agent_pb2, method.output_type.name)),
            )
            for method in service.methods
        }

    def _method(self, name: str, answer_type: type[Message]) -> Callable[[Any], Awaitable[Message]]:
        async def serve(request: Any) -> Message:
            if name == "GetEvents":
                return await self._get_events(request)
            self.calls.append((name, request))
            if name in self.behaviour:
                answer = await self.behaviour[name](request)
                if answer is not None:
                    return answer
            return answer_type()

        return serve

    async def _get_events(self, request: agent_pb2.GetEventsRequest) -> agent_pb2.GetEventsResponse:
        async with self._news:
            await self._news.wait_for(lambda: any(event.seq > request.after_seq for event in self._events))
        return agent_pb2.GetEventsResponse(
            events=[event for event in self._events if event.seq > request.after_seq]
        )

    async def report(self, event: agent_pb2.Event, *, seq: int | None = None) -> None:
        """Queue an event for the host."""
        event.seq = len(self._events) + 1 if seq is None else seq
        async with self._news:
            self._events.append(event)
            self._news.notify_all()

    async def exit(self, status: int = 0, exec_id: str = "", **counts: int) -> None:
        """Report the death of a process of container c1."""
        report = agent_pb2.ProcessExit(
            container_id="c1", exec_id=exec_id, status=status, exited_at_ns=1_700_000_000 * 10**9, **counts
        )
        await self.report(agent_pb2.Event(exit=report))

    def called(self, name: str) -> list[Any]:
        """The requests of that name so far."""
        return [request for called, request in self.calls if called == name]

    async def boot(self) -> None:
        """Say hello and take connections."""
        loop = asyncio.get_running_loop()
        self._hello_socket = socket.socket(socket.AF_UNIX)
        self._hello_socket.setblocking(False)
        await loop.sock_connect(self._hello_socket, str(self.layout.hello))
        await loop.sock_sendall(self._hello_socket, self.hello)
        self._spawn(self._accept())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            stream, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            stream.setblocking(False)
            self._spawn(self._connection(stream))

    async def _connection(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        line = b""
        while not line.endswith(b"\n"):
            line += await client.read_exactly(stream, 1)
        await loop.sock_sendall(stream, b"OK 1\n")
        if line == b"CONNECT 1024\n":
            await self._server.serve(stream)
            return
        name = await client.read_frame(stream)
        await loop.sock_sendall(stream, client.frame(name))
        self.streams[name.decode()] = stream

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.close(grace_s=0)
        for stream in (self._listener, self._hello_socket, *self.streams.values()):
            if stream is not None:
                stream.close()


class FakeVmm:
    """Answers every QMP command with success and notes it."""

    def __init__(self, layout: Layout) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._serving = asyncio.ensure_future(
            asyncio.start_unix_server(self._connection, sock=_listen(layout.qmp))
        )

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                request = json.loads(line)
                if request["execute"] != "qmp_capabilities":
                    self.commands.append((request["execute"], request.get("arguments", {})))
                writer.write(json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n")
        writer.close()

    async def close(self) -> None:
        (await self._serving).close()


class FakeShared:
    """The shared directory: notes what it is told."""

    def __init__(self) -> None:
        self.present: set[str] = set()
        self.rootfs_directory, self.volumes_directory = Path("/rootfs"), Path("/volumes")

    def add_rootfs(self, container_id: str, mounts: Any, host_root: str | None) -> None:
        self.present.add(container_id)

    def add_volume(self, container_id: str, request: Any) -> None:
        raise NotImplementedError

    def remove_container(self, container_id: str) -> None:
        self.present.discard(container_id)

    def close(self) -> None:
        self.present.clear()


class RecordingSender:
    """Where events would go to containerd."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    async def send(self, event: events.Envelope) -> None:
        name = event.envelope.event.type_url.rpartition(".")[2]
        self.sent.append((event.topic, getattr(events_pb2, name).FromString(event.envelope.event.value)))

    def close(self) -> None:
        pass


class Bench:
    """One sandbox with its guest. `task` is what containerd would call."""

    def __init__(self, root: Path, *, settings: Settings) -> None:
        self.layout = Layout(root)
        self.layout.runtime.mkdir()
        self.reaper = launch.Reaper()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reaper.reap)
        self.sender = RecordingSender()
        self.publisher = events.EventPublisher("n", self.sender)
        self.shared = FakeShared()
        self.ended = asyncio.Event()
        self.preparation = self._preparation(settings)
        self.agent = FakeAgent(self.layout)
        self.vmm = FakeVmm(self.layout)
        self.sandbox = Sandbox(self.preparation, self.publisher, self.reaper)
        self.task = TaskService(self.sandbox, self.ended.set)

    def _preparation(self, settings: Settings) -> Preparation:
        params = ShimParams()
        params.id, params.namespace = "c1", "n"
        made = Preparation(params)
        made.settings = settings
        made.group = "c1"
        made.layout = self.layout
        made.hello_listener = _listen(self.layout.hello)
        process = {"args": ["x"]}
        made.plan = SimpleNamespace(
            spec={"process": process}, volumes=(), dropped=(), hostname="h", resolv_conf_source=None,
            rootfs_path="/", netns_path=None,
        )  # fmt: skip
        made.shared = self.shared
        made.holder_pid = self.sleep()
        made.vmm_pid = self.sleep()
        made.vmm_log, writing = os.pipe()
        os.close(writing)
        return made

    @staticmethod
    def sleep() -> int:
        return launch.spawn(["/bin/sleep", "1000"], fds={})

    async def create(self, **more: Any) -> task_pb2.CreateTaskResponse:
        return await self.task.create(task_pb2.CreateTaskRequest(id="c1", bundle="/b", **more))

    async def start(self, exec_id: str = "") -> task_pb2.StartResponse:
        return await self.task.start(task_pb2.StartRequest(id="c1", exec_id=exec_id))

    async def running(self) -> None:
        """Boot, create and start c1."""
        await self.agent.boot()
        await self.create()
        self.sandbox.network._done = True
        await self.start()

    async def exec(self, exec_id: str) -> None:
        """Register and start an exec of c1."""
        request = task_pb2.ExecProcessRequest(id="c1", exec_id=exec_id)
        request.spec.value = EXEC_SPEC
        await self.task.exec(request)
        await self.start(exec_id)

    async def wait(self, exec_id: str = "") -> int:
        """The exit status of a process of c1."""
        async with asyncio.timeout(DEADLINE_S):
            return (await self.task.wait(task_pb2.WaitRequest(id="c1", exec_id=exec_id))).exit_status

    async def topics(self) -> list[str]:
        """Topics sent so far, `exit` with the id of its process."""
        await self.publisher.flush(DEADLINE_S)
        return [
            f"{topic.removeprefix('/tasks/')}{' ' + event.id if topic == '/tasks/exit' else ''}"
            for topic, event in self.sender.sent
        ]

    async def close(self) -> None:
        await self.sandbox.shut_down()
        await self.publisher.close()
        await self.agent.close()
        await self.vmm.close()
        for pid in list(self.reaper._waiting):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)  # noqa: ASYNC222 (it was just killed)


@contextlib.asynccontextmanager
async def bench(settings: Settings | None = None) -> AsyncIterator[Bench]:
    """A sandbox for one test."""
    root = Path(tempfile.mkdtemp(prefix="strato-"))
    made = Bench(root, settings=settings or Settings())
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(root, ignore_errors=True)


def run(test: Callable[[Bench], Awaitable[None]], settings: Settings | None = None) -> None:
    """Run *test* with a sandbox of its own."""

    async def inside() -> None:
        async with asyncio.timeout(2 * DEADLINE_S), bench(settings) as made:
            await test(made)

    asyncio.run(inside())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop work until *condition* holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (it depends on the code under test alone)
            await asyncio.sleep(0)


def refuse(error: ShimError | None = None) -> Callable[[Any], Awaitable[Message | None]]:
    """A behaviour: answer with an error."""

    async def behave(request: Any) -> Message | None:
        raise error or RemoteError(2, "exec: no such file or directory")

    return behave
