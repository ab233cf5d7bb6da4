"""Making and removing the containers of a sandbox: Create and Delete, and taking back what they did.

Owned by Sandbox. Create runs as a task of its own under one deadline; whatever ends it early (an error, the
deadline, a Delete of a client that gave up) undoes what was done: in the guest, in the shared directory,
the holder. A container appears in `Sandbox.containers` only when it is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import launch
from .agent_proto.generated import agent_pb2
from .container import Container, ExitInfo, Process, wanted_stdio
from .endpoints import StdioRequest
from .errors import (
    AlreadyExistsError,
    DeadlineError,
    NotFoundError,
    RevokedError,
    SandboxError,
    ShimError,
    describe,
)
from .layout import GUEST_NETNS, GUEST_ROOTFS, GUEST_VOLUMES, ROOTFS_TAG, VOLUMES_TAG
from .log import fields
from .states import Action
from .stdio import ProcessIo

if TYPE_CHECKING:
    from .sandbox import Sandbox
    from .storage import RootfsMount

_log = logging.getLogger("shim.creation")


class Creation:
    """Creates and deletes the containers of *sandbox*."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._running: dict[str, asyncio.Task[Container]] = {}
        self._steps: dict[str, str] = {}
        """What each creation is at, for the error of one that takes too long."""
        self._prepared = True
        self._shown: dict[str, list[str]] = {}
        """The shares in which each container has a folder."""

    @property
    def pending(self) -> bool:
        """Whether a container is on its way."""
        return bool(self._running)

    async def create(
        self, container_id: str, bundle: Path, rootfs: Sequence[RootfsMount], request: StdioRequest
    ) -> Container:
        """Create a container, booting the VM if it is the first. Raises ShimError, with the console's end."""
        sandbox = self._sandbox
        if container_id in sandbox.containers or container_id in self._running:
            raise AlreadyExistsError(f"Container {container_id} exists already")
        task = asyncio.create_task(self._create(container_id, bundle, rootfs, request))
        self._running[container_id] = task
        try:
            return await self._within_deadline(container_id, task)
        except (SandboxError, DeadlineError) as error:
            tail = (await sandbox.console_tail()).strip()
            if not tail:
                raise
            told = type(error)(f"{describe(error)}; end of the guest's console:\n{tail}")
            raise told from error
        finally:
            del self._running[container_id]
            self._steps.pop(container_id, None)
            if sandbox.idle and sandbox.unused:
                # The VM was made for a container that never came to be.
                sandbox.fail(SandboxError("The sandbox's first container could not be created"))

    async def _within_deadline(self, container_id: str, task: asyncio.Task[Container]) -> Container:
        timeout_s = self._sandbox.settings.shim.create_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await task
        except TimeoutError as error:
            step = self._steps.get(container_id, "beginning")
            if not self._sandbox.alive:
                step += f", which got as far as {self._sandbox.phases.last}"
            reason = f"Container {container_id} was not created in {timeout_s:g} s: it was still {step}"
            raise DeadlineError(reason) from error
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise RevokedError(f"Container {container_id} was deleted while it was created") from None

    async def _create(
        self, container_id: str, bundle: Path, rootfs: Sequence[RootfsMount], request: StdioRequest
    ) -> Container:
        sandbox = self._sandbox
        preparation = sandbox.preparation
        sandbox.start_vm(bundle, container_id)
        # What was prepared for the container that the shim was started with serves it once.
        first, self._prepared = self._prepared and preparation.params.id == container_id, False
        plan = preparation.plan if first else self._member_plan(bundle, container_id)
        for item in plan.dropped:
            _log.info("config.json: %s", item, extra=fields(container=container_id))
        container = Container(sandbox, container_id, bundle)
        io = ProcessIo(sandbox.hub, sandbox.reaper, request)
        try:
            container.holder_pid = preparation.holder_pid if first else self._member_holder(container_id)
            container.init = Process(container, "", io, container.holder_pid)
            self._share_files(container_id, plan, rootfs)
            self._steps[container_id] = "opening its stdio"
            await io.open(container_id=container_id, namespace=sandbox.params.namespace)
            self._steps[container_id] = "waiting for the guest"
            await sandbox.booted()
            self._steps[container_id] = "waiting for the VMM to show its files"
            await self._show_files(container_id, plan)
            self._steps[container_id] = "waiting for the agent's answer to CreateContainer"
            await sandbox.agent.create_container(
                agent_pb2.CreateContainerRequest(
                    container_id=container_id,
                    oci_spec=json.dumps(plan.spec).encode(),
                    stdio=wanted_stdio(io, plan.spec["process"]),
                ),
                timeout_s=sandbox.settings.shim.create_timeout_s,
            )
            self._steps[container_id] = "connecting its stdio streams in the guest"
            await container.init.connect_io()
        except BaseException:
            io.close()
            await asyncio.shield(self.undo(container))
            raise
        sandbox.phases.mark("container_ready")
        sandbox.clock_may_be_set.set()
        sandbox.containers[container_id] = container
        sandbox.save()
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

        preparation = self._sandbox.preparation
        pid = launch.start_holder(
            paths.library_dir() / "strato-holder",
            netns=f"/proc/{preparation.holder_pid}/ns/net",
            title=f"strato: {container_id}",
            cgroups=preparation.cgroup.directories,
            log_fd=2,
        )
        self._sandbox.watch_holder(pid)
        return pid

    def _share_files(self, container_id: str, plan: Any, rootfs: Sequence[RootfsMount]) -> None:
        shared = self._sandbox.preparation.shared
        shared.add_rootfs(container_id, rootfs, None if rootfs else plan.rootfs_path)
        for volume in plan.volumes:
            shared.add_volume(container_id, volume)

    async def _show_files(self, container_id: str, plan: Any) -> None:
        sandbox = self._sandbox
        vm = sandbox.vm
        if vm is None or sandbox.settings.programs.virtiofsd is not None:
            return
        shared = sandbox.preparation.shared
        folders = {ROOTFS_TAG: shared.rootfs_directory}
        if plan.volumes:
            folders[VOLUMES_TAG] = shared.volumes_directory
        shown = self._shown.setdefault(container_id, [])
        for tag, folder in folders.items():
            await vm.add_share(tag, container_id, folder / container_id)
            shown.append(tag)

    async def _hide_files(self, container_id: str) -> None:
        vm = self._sandbox.vm
        for tag in self._shown.pop(container_id, ()):
            if vm is None:
                continue
            try:
                await vm.remove_share(tag, container_id)
            except SandboxError as error:
                _log.warning("files stay busy: %s", describe(error), extra=fields(container=container_id))

    async def undo(self, container: Container) -> None:
        """Remove what there is of a container in the guest, the shares, and its holder."""
        sandbox = self._sandbox
        if sandbox.alive:
            with contextlib.suppress(ShimError):
                await sandbox.agent.remove_container(container.id)
        await self._hide_files(container.id)
        try:
            sandbox.preparation.shared.remove_container(container.id)
        except (OSError, ShimError) as error:
            _log.warning("shared files stay: %s", describe(error), extra=fields(container=container.id))
        pid, container.holder_pid = container.holder_pid, 0
        if pid:
            sandbox.reaper.kill(pid)

    async def delete(self, container_id: str) -> Process:
        """Remove a container whose init is not running. Raises WrongStateError, NotFoundError."""
        sandbox = self._sandbox
        if container_id in self._running:
            # The client gave up on its Create; nobody else would ever remove what comes of it.
            task = self._running[container_id]
            task.cancel()
            await asyncio.wait([task])
        container = sandbox.container(container_id)
        init = container.init
        init.check(Action.DELETE)
        await init.io.drain()
        if sandbox.containers.get(container_id) is not container:
            raise NotFoundError(f"Container {container_id} does not exist")
        del sandbox.containers[container_id]
        for process in container.processes():
            process.io.close()
        if sandbox.preparation.single:
            # No container can follow, and what this one wrote to a share is on the host since its init died
            # (write-through; the kernel writes back shared mappings when they end).
            sandbox.retire()
        await self.undo(container)
        init.apply(Action.DELETE)
        if init.exit is None:
            init.exit = ExitInfo(0, time.time_ns())
        if not init.ended.done():
            init.ended.set_result(init.exit)
        sandbox.phases.mark("deleted")
        sandbox.save()
        return init
