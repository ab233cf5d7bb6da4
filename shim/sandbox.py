"""One sandbox: its VM, the connection to its agent, its containers. The only writer of their state.

Made by server.py from a Preparation; lives until Shutdown. The story of a sandbox is `_boot` (the guest
says hello, the agent is connected, events flow), `create` per container, `_fail` when the VM is lost, and
`shut_down`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from . import launch, state
from .agent_proto import client as agent_client
from .agent_proto.generated import agent_pb2
from .container import Container, ExitInfo, Process, wanted_stdio
from .endpoints import StdioRequest
from .errors import (
    AlreadyExistsError,
    DeadlineError,
    GuestProtocolError,
    NotFoundError,
    SandboxError,
    ShimError,
    describe,
)
from .events import EventPublisher
from .layout import GUEST_NETNS, GUEST_ROOTFS, GUEST_VOLUMES
from .log import fields
from .prepare import Preparation
from .protos.generated import events_pb2
from .states import Action, State
from .stdio import ProcessIo, PumpHub
from .vm import VirtualMachine

EVENTS_WAIT_MS = 60_000
CLOCK_INTERVAL_S = 30.0
DESTROY_TIMEOUT_S = 1.0
QUIT_TIMEOUT_S = 2.0
VM_END_TIMEOUT_S = 2.0
"""Between the loss of the agent's connection and the end of the VM, which knows the reason."""

ENTROPY_BYTES = 64
STATUS_LIMIT = 255

_log = logging.getLogger("shim.sandbox")


class Sandbox:
    """Everything that one shim owns."""

    def __init__(self, preparation: Preparation, publisher: EventPublisher, reaper: launch.Reaper) -> None:
        self.preparation = preparation
        self.params = preparation.params
        self.settings = preparation.settings
        self.layout = preparation.layout
        self.phases = preparation.phases
        self.reaper = reaper
        self.publisher = publisher
        self.containers: dict[str, Container] = {}
        self.failure: Exception | None = None
        """Why the VM is lost; None while all is well."""
        self._hub: PumpHub | None = None
        self._agent: agent_client.AgentClient | None = None
        self._vm: VirtualMachine | None = None
        self._hello: Any = None
        self._boot: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._creating: set[str] = set()
        self._network_up = False
        self._closing = False
        self._state = state.StateFile(self.layout.root)
        self._adopt_holder()
        if preparation.started:
            self._adopt_vm()

    # What containers use.

    @property
    def agent(self) -> agent_client.AgentClient:
        """The connected agent. Raises SandboxError when there is none."""
        if self._agent is None:
            raise self.failure or SandboxError("Guest agent is not connected")
        return self._agent

    @property
    def hub(self) -> PumpHub:
        """The pump, started on first use."""
        if self._hub is None:
            self._hub = PumpHub()
        return self._hub

    @property
    def alive(self) -> bool:
        """Whether the agent can be asked."""
        return self._agent is not None and self.failure is None

    def publish(self, topic: str, message: Message) -> None:
        """Queue an event for containerd."""
        self.publisher.publish(topic, message)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* in the background; its errors are logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background work failed", exc_info=task.exception())

    def container(self, container_id: str) -> Container:
        """The container of that id. Raises NotFoundError."""
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFoundError(f"Container {container_id} does not exist") from None

    def save(self) -> None:
        """Write state.json; a full disk is logged, not fatal."""
        self._state.data.update(
            id=self.preparation.group,
            namespace=self.params.namespace,
            address=self.params.address,
            bundle=str(Path.cwd()),
            shim=state.process_entry(os.getpid()),
            vmm=state.process_entry(self._vm.pid) if self._vm is not None and self._vm.runs else None,
            cgroups=list(getattr(self.preparation.cgroup, "created", ())),
            phases_ms=self.phases.reached,
            failure=describe(self.failure) if self.failure else None,
            containers={
                container.id: {
                    "bundle": str(container.bundle),
                    "holder": state.process_entry(container.holder_pid) if container.holder_pid else None,
                    "status": container.init.state.value,
                }
                for container in self.containers.values()
            },
        )
        try:
            self._state.save()
        except OSError as error:
            if not self._closing:
                _log.warning("state.json cannot be written: %s", error.strerror)

    # Boot.

    def _adopt_holder(self) -> None:
        pid = self.preparation.holder_pid
        if pid:
            self.reaper.watch(pid, lambda _: self._holder_ended(pid))

    def _adopt_vm(self) -> None:
        self._vm = VirtualMachine(
            self.layout, self.reaper, pid=self.preparation.vmm_pid, log_fd=self.preparation.vmm_log
        )
        self._vm.ended.add_done_callback(lambda _: self._vm_ended())
        self.save()
        self._boot = asyncio.create_task(self._boot_guest())
        # Whoever needs it awaits it; nobody might, and then it is no news.
        self._boot.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _boot_guest(self) -> None:
        """Hello, agent, CreateSandbox; then events and clock in the background. Raises SandboxError."""
        try:
            listener = self.preparation.hello_listener
            assert listener is not None
            self._hello, _ = await asyncio.get_running_loop().sock_accept(listener)
            self._hello.setblocking(False)
            hello = await agent_client.answer_hello(self._hello)
            self.phases.mark("hello")
            _log.debug(
                "guest said hello",
                extra=fields(
                    agent=hello.agent_version, kernel=hello.kernel_release, uptime_ns=hello.uptime_ns
                ),
            )
            agent = await agent_client.AgentClient.connect(str(self.layout.vsock))
            self.phases.mark("agent_connected")
            agent.closed.add_done_callback(lambda _: self._agent_lost())
            await agent.create_sandbox(self._sandbox_request())
            self._agent = agent
            self.phases.mark("agent_ready")
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.fail(error)
            raise
        self.spawn(self._follow_events())
        self.spawn(self._keep_clock())

    def _sandbox_request(self) -> agent_pb2.CreateSandboxRequest:
        plan = self.preparation.plan
        resolv_conf = b""
        if plan.resolv_conf_source:
            with contextlib.suppress(OSError):
                resolv_conf = Path(plan.resolv_conf_source).read_bytes()[:65536]
        return agent_pb2.CreateSandboxRequest(
            sandbox_id=self.preparation.group,
            hostname=plan.hostname,
            resolv_conf=resolv_conf,
            shares=[
                agent_pb2.Share(tag="rootfs", mount_point=GUEST_ROOTFS),
                agent_pb2.Share(tag="volumes", mount_point=GUEST_VOLUMES),
            ],
            entropy=os.urandom(ENTROPY_BYTES),
            wall_clock_ns=time.time_ns(),
        )

    async def _booted(self) -> None:
        """Wait for the boot. Raises SandboxError with the reason."""
        if self.failure is not None:
            raise self.failure
        assert self._boot is not None
        await asyncio.shield(self._boot)

    # What the guest reports.

    async def _follow_events(self) -> None:
        seq = 0
        while self.alive:
            try:
                events = list(await self.agent.get_events(seq, EVENTS_WAIT_MS))
                for event in events:
                    if event.seq != seq + 1:
                        raise GuestProtocolError(f"Guest sent event {event.seq} after event {seq}")
                    seq = event.seq
                    self._on_event(event)
            except ShimError as error:
                if not self.agent.closed.done() or isinstance(error, GuestProtocolError):
                    self.fail(error)
                return  # a lost connection is `_agent_lost`'s affair

    def _on_event(self, event: agent_pb2.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "exit":
            report = event.exit
            container = self.containers.get(report.container_id)
            if container is None:
                return
            now = time.time_ns()
            # The guest's clock is the guest's; the times that leave this host lie in the past.
            info = ExitInfo(min(report.status, STATUS_LIMIT), min(report.exited_at_ns, now) or now)
            counts = {"stdout": report.stdout_bytes, "stderr": report.stderr_bytes}
            container.reported_exit(report.exec_id, info, counts)
        elif kind == "oom":
            if event.oom.container_id in self.containers:
                self.publish("/tasks/oom", events_pb2.TaskOOM(container_id=event.oom.container_id))
        elif kind == "stream_eof":
            container_id, _, rest = event.stream_eof.stream.partition("/")
            exec_id, _, name = rest.partition("/")
            container = self.containers.get(container_id)
            process: Process | None = None
            if container is not None:
                process = container.execs.get(exec_id) if exec_id else container.init
            if process is not None and name in ("stdout", "stderr"):
                process.io.end_of_stream(name, event.stream_eof.total)

    async def _keep_clock(self) -> None:
        while self.alive:
            await asyncio.sleep(CLOCK_INTERVAL_S)
            await self.set_clock()

    async def set_clock(self) -> None:
        """Set the guest's clock to the host's."""
        with contextlib.suppress(ShimError):
            await self.agent.set_guest_date_time(time.time_ns())

    # The VM is lost.

    def _vm_ended(self) -> None:
        assert self._vm is not None
        if not self._closing:
            self.fail(SandboxError(f"VM ended: {self._vm.why_it_ended()}"))

    def _agent_lost(self) -> None:
        if not self._closing and self.failure is None:
            self.spawn(self._agent_lost_soon())

    async def _agent_lost_soon(self) -> None:
        # When the VM dies, its sockets close first; its own reason is the better one.
        if self._vm is not None:
            await asyncio.wait([self._vm.ended], timeout=VM_END_TIMEOUT_S)
        if not self._closing and self.failure is None:
            error = self._agent.error if self._agent is not None else None
            self.fail(error or SandboxError("Connection to the guest agent was lost"))

    def fail(self, error: Exception) -> None:
        """The sandbox cannot go on because of *error*: end the VM, every process is dead."""
        if self.failure is not None or self._closing:
            return
        self.failure = error
        _log.error("sandbox failed: %s", describe(error))
        if self._boot is not None and not self._boot.done():
            self._boot.cancel()
        for container in self.containers.values():
            container.sandbox_died()
        if self._agent is not None:
            self._agent.close()
        self.save()
        if self._vm is not None:
            self.spawn(self._vm.end(orderly_s=0))

    def _holder_ended(self, pid: int) -> None:
        for container in self.containers.values():
            if container.holder_pid == pid and not self._closing:
                container.holder_pid = 0
                _log.warning("holder died, killing its container", extra=fields(container=container.id))
                self.spawn(self._kill_all(container))

    async def _kill_all(self, container: Container) -> None:
        if container.init.state in (State.CREATED, State.RUNNING, State.PAUSED, State.STARTING):
            with contextlib.suppress(ShimError):
                await self.agent.signal_process(container.id, "", 9, everything=True)

    # Create and Delete.

    async def create(
        self, container_id: str, bundle: Path, rootfs: Sequence[Any], request: StdioRequest
    ) -> Container:
        """Create a container, booting the VM if it is the first. Raises ShimError, with the console's end."""
        if container_id in self.containers or container_id in self._creating:
            raise AlreadyExistsError(f"Container {container_id} exists already")
        self._creating.add(container_id)
        try:
            timeout_s = self.settings.shim.create_timeout_s
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._create(container_id, bundle, rootfs, request)
            except TimeoutError as error:
                raise DeadlineError(f"Container {container_id} was not created in {timeout_s:g} s") from error
            except asyncio.CancelledError:
                if self.failure is None:
                    raise
                raise SandboxError(f"Container {container_id} cannot be created") from self.failure
        except (SandboxError, DeadlineError) as error:
            tail = (await self._console_tail()).strip()
            if not tail:
                raise
            told = type(error)(f"{describe(error)}; end of the guest's console:\n{tail}")
            raise told from error
        finally:
            self._creating.discard(container_id)
            if not self.containers and not self._creating and self.failure is None and self._failed_first():
                self.fail(SandboxError("The sandbox's first container could not be created"))

    def _failed_first(self) -> bool:
        # The VM was made for a container that never came to be.
        return self._vm is not None and self.phases.reached.get("container_ready") is None

    async def _console_tail(self) -> str:
        return await self._vm.console_tail() if self._vm is not None else ""

    async def _create(
        self, container_id: str, bundle: Path, rootfs: Sequence[Any], request: StdioRequest
    ) -> Container:
        preparation = self.preparation
        if preparation.error is not None:
            raise preparation.error
        first = not self.containers and preparation.params.id == container_id
        if self._vm is None:
            # There was no config.json when the shim was started.
            preparation.start_vm(bundle, container_id)
            self._adopt_holder()
            self._adopt_vm()
        if self.failure is not None:
            raise SandboxError("Sandbox has failed") from self.failure
        plan = preparation.plan if first else self._member_plan(bundle, container_id)
        for item in plan.dropped:
            _log.info("config.json: %s", item, extra=fields(container=container_id))
        container = Container(self, container_id, bundle)
        io = ProcessIo(self.hub, self.reaper, request)
        try:
            container.holder_pid = preparation.holder_pid if first else self._member_holder(container_id)
            container.init = Process(container, "", io, container.holder_pid)
            self._share_files(container_id, plan, rootfs)
            await io.open(container_id=container_id, namespace=self.params.namespace)
            await self._booted()
            await self.agent.create_container(
                agent_pb2.CreateContainerRequest(
                    container_id=container_id,
                    oci_spec=json.dumps(plan.spec).encode(),
                    stdio=wanted_stdio(io, plan.spec["process"]),
                ),
                timeout_s=self.settings.shim.create_timeout_s,
            )
            self.phases.mark("container_ready")
            self.containers[container_id] = container
            await container.init.connect_io()
        except BaseException:
            self.containers.pop(container_id, None)
            io.close()
            await asyncio.shield(self._undo(container))
            raise
        self.save()
        return container

    def _member_plan(self, bundle: Path, container_id: str) -> Any:
        from .oci import bundle as oci_bundle
        from .oci import transform

        return transform.transform(
            oci_bundle.load(bundle),
            transform.TransformContext(
                container_id=container_id,
                guest_rootfs=f"{GUEST_ROOTFS}/{container_id}",
                guest_volumes=f"{GUEST_VOLUMES}/{container_id}",
                guest_netns=GUEST_NETNS,
                sandbox_member=True,
                bundle=str(bundle),
            ),
        )

    def _member_holder(self, container_id: str) -> int:
        from vmm import paths

        pid = launch.start_holder(
            paths.library_dir() / "strato-holder",
            netns=f"/proc/{self.preparation.holder_pid}/ns/net",
            title=f"strato: {container_id}",
            cgroups=self.preparation.cgroup.directories,
            log_fd=2,
        )
        self.reaper.watch(pid, lambda _: self._holder_ended(pid))
        return pid

    def _share_files(self, container_id: str, plan: Any, rootfs: Sequence[Any]) -> None:
        shared = self.preparation.shared
        shared.add_rootfs(container_id, rootfs, None if rootfs else plan.rootfs_path)
        for volume in plan.volumes:
            shared.add_volume(container_id, volume)

    async def _undo(self, container: Container) -> None:
        """Take back what `create` did or `delete` leaves: in the guest, the shares, the holder."""
        if self.alive:
            with contextlib.suppress(ShimError):
                await self.agent.remove_container(container.id)
        try:
            self.preparation.shared.remove_container(container.id)
        except (OSError, ShimError) as error:
            _log.warning("shared files stay: %s", describe(error), extra=fields(container=container.id))
        pid, container.holder_pid = container.holder_pid, 0
        if pid:
            self.reaper.kill(pid)

    async def delete(self, container_id: str) -> Process:
        """Remove a container whose init is not running. Raises WrongStateError, NotFoundError."""
        container = self.container(container_id)
        init = container.init
        init.check(Action.DELETE)
        await init.io.drain()
        for process in container.processes():
            process.io.close()
        if container_id not in self.containers:
            raise NotFoundError(f"Container {container_id} does not exist")
        del self.containers[container_id]
        await self._undo(container)
        init.apply(Action.DELETE)
        if init.exit is None:
            init.exit = ExitInfo(0, time.time_ns())
        if not init.ended.done():
            init.ended.set_result(init.exit)
        self.phases.mark("deleted")
        self.save()
        return init

    # Network.

    async def bring_up_network(self, container: Container) -> None:
        """Mirror the interfaces that are in the netns now into the guest, once per sandbox."""
        if self._network_up:
            return
        from .guest_network import bring_up

        self._network_up = True
        try:
            assert self._vm is not None
            await bring_up(
                container.holder_pid, self.preparation.taps, agent=self.agent, vm=self._vm, phases=self.phases
            )
        except BaseException:
            self._network_up = False
            raise

    # The end.

    @property
    def idle(self) -> bool:
        """Whether no container is left and none is on its way."""
        return not self.containers and not self._creating

    async def shut_down(self) -> None:
        """End the VM and remove everything of this sandbox on the host. May be called twice."""
        if self._closing:
            return
        self._closing = True
        if self._boot is not None:
            self._boot.cancel()
        if self._agent is not None and self.failure is None:
            with contextlib.suppress(ShimError):
                await self._agent.destroy_sandbox(timeout_s=DESTROY_TIMEOUT_S)
            self._agent.close()
        self.phases.mark("guest_destroyed")
        if self._vm is not None:
            await self._vm.end(orderly_s=QUIT_TIMEOUT_S if self.failure is None else 0)
        self.phases.mark("vm_ended")
        for container in list(self.containers.values()):
            container.sandbox_died()
            await self._undo(container)
        if self._hello is not None:
            self._hello.close()
        for task in list(self._tasks):
            task.cancel()
        if self._hub is not None:
            self._hub.close()
        self._remove_host_side()
        self.phases.mark("host_cleaned")
        _log.info("sandbox ended", extra=fields(id=self.preparation.group, phases=self.phases.reached))

    def _remove_host_side(self) -> None:
        from . import cleanup

        preparation = self.preparation
        if preparation.holder_pid:
            self.reaper.kill(preparation.holder_pid)
        preparation.close()
        for what, action in (
            ("shared directory", getattr(preparation.shared, "close", None)),
            ("cgroup", getattr(preparation.cgroup, "remove", None)),
        ):
            if action is None:
                continue
            try:
                action()
            except (OSError, ShimError) as error:
                _log.warning("%s stays: %s", what, describe(error))
        if preparation.lock_fd >= 0:
            cleanup.remove_tree(str(self.layout.root))
