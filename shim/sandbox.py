"""One sandbox: its VM, the connection to its agent, its containers. The only writer of their state.

Made by server.py from a Preparation; lives until Shutdown. The story of a sandbox is `_boot_guest` (the
guest says hello, the agent is connected, events flow), then creation.py and container.py per container,
`fail` when the VM is lost, and `shut_down`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from . import launch, names, state
from .agent_proto import client as agent_client
from .agent_proto.generated import agent_pb2
from .container import Container, ExitInfo, Process
from .creation import Creation
from .errors import GuestProtocolError, NotFoundError, SandboxError, ShimError, describe
from .events import EventPublisher
from .guest_network import GuestNetwork
from .layout import GUEST_ROOTFS, GUEST_VOLUMES, ROOTFS_TAG, VOLUMES_TAG
from .log import fields
from .prepare import Preparation
from .protos.generated import events_pb2
from .states import State
from .stdio import PumpHub
from .vm import VirtualMachine

EVENTS_WAIT_MS = 60_000
EMPTY_ANSWER_PAUSE_S = 0.1
"""An honest agent answers without events once a minute, another one must not make the shim spin."""
CLOCK_INTERVAL_S = 30.0
CLOCK_FIRST_S = 2.0
CLOCK_ATTEMPTS = 5
CLOCK_ROUND_TRIP_S = 0.05
DESTROY_TIMEOUT_S = 1.0
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
        self.network = GuestNetwork(preparation)
        self._closing: asyncio.Task[None] | None = None
        self._retired = False
        self.clock_may_be_set = asyncio.Event()
        """Set when the guest has nothing more urgent to do than its first setting of the clock."""
        self.creation = Creation(self)
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
        return self._agent is not None and self.failure is None and not self._retired

    @property
    def vm(self) -> VirtualMachine | None:
        """The VM, as long as it is of use."""
        return self._vm if self.alive else None

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
        if self.preparation.holder_pid:
            self.watch_holder(self.preparation.holder_pid)

    def watch_holder(self, pid: int) -> None:
        """End the container of holder *pid* when that dies."""
        self.reaper.watch(pid, lambda _: self._holder_ended(pid))

    def start_vm(self, bundle: Path, container_id: str) -> None:
        """Start the VM for its first container, if it was not started before the shim served."""
        if self.preparation.error is not None:
            raise self.preparation.error
        if self._retired:
            raise SandboxError("The sandbox has ended with its container")
        if self._vm is None:
            self.preparation.start_vm(bundle, container_id)
            self._adopt_holder()
            self._adopt_vm()

    def _adopt_vm(self) -> None:
        self._vm = VirtualMachine(
            self.layout,
            self.reaper,
            pid=self.preparation.vmm_pid,
            log_fd=self.preparation.vmm_log,
            tap_fds=self.preparation.take_tap_fds(),
        )
        self._vm.ended.add_done_callback(lambda _: self._vm_ended())
        self.save()
        self._boot = asyncio.create_task(self._boot_guest())
        self.spawn(self.network.preload())
        # Whoever needs it awaits it; nobody might, and then it is no news.
        self._boot.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _boot_guest(self) -> None:
        """Hello, agent, CreateSandbox; then events and clock in the background. Raises SandboxError."""
        try:
            listener = self.preparation.hello_listener
            assert listener is not None
            self._hello, _ = await asyncio.get_running_loop().sock_accept(listener)
            self._hello.setblocking(False)
            # A guest gets to say hello once; whatever else it connects to here finds nobody.
            listener.close()
            self.layout.hello.unlink(missing_ok=True)
            hello = await agent_client.answer_hello(self._hello)
            self.phases.mark("kernel_began", ago_ns=hello.uptime_ns)
            self.phases.mark("agent_began", ago_ns=max(0, hello.uptime_ns - hello.agent_start_ns))
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
                agent_pb2.Share(tag=ROOTFS_TAG, mount_point=GUEST_ROOTFS),
                agent_pb2.Share(tag=VOLUMES_TAG, mount_point=GUEST_VOLUMES),
            ],
            entropy=os.urandom(ENTROPY_BYTES),
            wall_clock_ns=time.time_ns(),
        )

    async def booted(self) -> None:
        """Wait for the boot. Raises SandboxError with the reason."""
        if self._boot is not None and self.failure is None:
            try:
                await asyncio.shield(self._boot)
            except asyncio.CancelledError:
                if self.failure is None:
                    raise
        if self.failure is not None:
            raise SandboxError("Sandbox has failed") from self.failure

    async def console_tail(self) -> str:
        """The end of the guest's console; may be empty."""
        return await self._vm.console_tail() if self._vm is not None else ""

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
                if not events:
                    await asyncio.sleep(EMPTY_ANSWER_PAUSE_S)
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
            container = self.containers.get(event.oom.container_id)
            if container is not None and container.oom_is_news():
                self.publish("/tasks/oom", events_pb2.TaskOOM(container_id=container.id))
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
        # CreateSandbox has set it too, but it may have been long on its way.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOCK_FIRST_S):
                await self.clock_may_be_set.wait()
        while self.alive:
            await self.set_clock()
            await asyncio.sleep(CLOCK_INTERVAL_S)

    async def set_clock(self) -> None:
        """Set the guest's clock to the host's; again while the call is slow, as the guest lags by
        its way there.
        """
        with contextlib.suppress(ShimError):
            for _ in range(CLOCK_ATTEMPTS):
                begin = time.monotonic()
                await self.agent.set_guest_date_time(time.time_ns())
                if time.monotonic() - begin < CLOCK_ROUND_TRIP_S:
                    return

    # The VM is lost.

    def _vm_ended(self) -> None:
        assert self._vm is not None
        if not self._closing and not self._retired:
            self.fail(SandboxError(f"VM ended: {self._vm.why_it_ended()}"))

    def _agent_lost(self) -> None:
        if not self._closing and self.alive:
            self.spawn(self._agent_lost_soon())

    async def _agent_lost_soon(self) -> None:
        # When the VM dies, its sockets close first; its own reason is the better one.
        if self._vm is not None:
            await asyncio.wait([self._vm.ended], timeout=VM_END_TIMEOUT_S)
        if not self._closing and self.alive:
            error = self._agent.error if self._agent is not None else None
            self.fail(error or SandboxError("Connection to the guest agent was lost"))

    @property
    def unused(self) -> bool:
        """Whether the VM never had a container."""
        return self._vm is not None and "container_ready" not in self.phases.reached

    def fail(self, error: Exception) -> None:
        """The sandbox cannot go on because of *error*: end the VM, every process is dead."""
        if self.failure is not None or self._closing or self._retired:
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
            self.spawn(self._vm.end())

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

    # Network.

    async def bring_up_network(self, container: Container) -> None:
        """Give the guest the interfaces that are in the netns now, once per sandbox."""
        assert self._vm is not None
        await self.network.bring_up(container.holder_pid, agent=self.agent, vm=self._vm)

    # The end.

    @property
    def idle(self) -> bool:
        """Whether no container is left and none is on its way."""
        return not self.containers and not self.creation.pending

    def retire(self) -> None:
        """End the VM, whose last container is being deleted: its memory goes while containerd calls on."""
        if self.alive and self._vm is not None:
            self._retired = True
            assert self._agent is not None
            self._agent.close()
            self.spawn(self._vm.end())

    async def shut_down(self) -> None:
        """End the VM and remove everything of this sandbox on the host. May be called again.

        Goes on to its end for a caller that no longer waits: containerd waits for three seconds, and on a
        busy host that is not always enough.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._shut_down())
        await asyncio.shield(self._closing)

    async def _shut_down(self) -> None:
        if self._boot is not None:
            self._boot.cancel()
        if self._agent is not None and self.alive:
            with contextlib.suppress(ShimError):
                await self._agent.destroy_sandbox(timeout_s=DESTROY_TIMEOUT_S)
            self._agent.close()
        self.phases.mark("guest_destroyed")
        if self._vm is not None:
            await self._vm.end()
        self.phases.mark("vm_ended")
        await self.network.take_down()
        for container in list(self.containers.values()):
            container.sandbox_died()
            await self.creation.undo(container)
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
        from . import leftovers

        preparation = self.preparation
        removed = True
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
                removed = False
                _log.warning("%s stays: %s", what, describe(error))
        if preparation.lock_fd >= 0:
            leftovers.remove_tree(str(self.layout.root))
            if removed and not self.layout.root.exists():
                with contextlib.suppress(OSError):
                    Path(names.ENDED_NAME).touch(mode=0o600)
