"""From a call of the shim to a VM that boots: everything the daemon does before it imports asyncio.

server.py calls `Preparation.begin` first thing, so that the guest's kernel starts while the shim loads the
rest of its modules. Nothing here may end the daemon: containerd only hears what is wrong from the answer
to Create, so the first error is kept in `error` and raised there.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from . import config, early_log, launch, leftovers, names, state
from .errors import HostError, ShimError
from .layout import GUEST_CID, GUEST_NETNS, GUEST_ROOTFS, GUEST_VOLUMES, ROOTFS_TAG, VOLUMES_TAG, Layout
from .params import ShimParams

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

_log = early_log.EarlyLogger("shim.prepare")


class Phases:
    """Milliseconds since the daemon began, by name; in state.json and in the log, for the benchmark."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.reached: dict[str, float] = {}

    @property
    def last(self) -> str:
        """The latest phase; "nothing" before the first."""
        return next(reversed(self.reached), "nothing")

    def mark(self, name: str, *, ago_ns: int = 0) -> None:
        """Note that *name* is reached now, or was some time ago; the first time counts."""
        reached_ms = (time.monotonic() - self._began) * 1000 - ago_ns / 1e6
        # The past may be what a guest says, and it may say anything.
        self.reached.setdefault(name, round(max(0.0, reached_ms), 1))


class Preparation:
    """What exists so far. Owned by server.py, then by Sandbox, which ends all of it."""

    def __init__(self, params: ShimParams) -> None:
        self.params = params
        self.phases = Phases()
        self.error: Exception | None = None
        self.settings = config.Settings()
        self.group = names.group_of(".", params.id)
        self.layout = Layout(Path())
        self.lock_fd = -1
        self.hello_listener: socket.socket | None = None
        self.plan: Any = None
        """GuestPlan of the first container (shim.oci.transform)."""
        self.spec: Mapping[str, Any] = {}
        self.cgroup: Any = None
        self.shared: Any = None
        self.holder_pid = 0
        self.taps: list[Any] = []
        """The spare NICs by name and MAC; their descriptors are the VMM's once it runs."""
        self._tap_fds: list[int] = []
        self.vmm_pid = 0
        self.vmm_log: int = -1
        """Read end of strato-vmm's stderr."""
        self.engine = ""

    @property
    def started(self) -> bool:
        """Whether a VM was started."""
        return self.vmm_pid > 0

    @property
    def log_level(self) -> str:
        """The level of the log, as the settings name it."""
        return "debug" if self.params.debug else self.settings.shim.log_level

    @property
    def single(self) -> bool:
        """Whether all ends with the first container's init: no group that others could join, and a pid
        namespace of its own.
        """
        if self.plan is None or set(names.GROUP_ANNOTATIONS) & set(_annotations(self.spec)):
            return False
        namespaces = (self.plan.spec.get("linux") or {}).get("namespaces") or ()
        return any(entry["type"] == "pid" and not entry.get("path") for entry in namespaces)

    def begin(self) -> None:
        """Isolate this process, take the state directory, and start the VM if config.json is there yet."""
        try:
            self._isolate()
            self._load_settings()
            self._take_state_dir()
            self.phases.mark("state_ready")
            if Path("config.json").exists():
                self.start_vm(Path.cwd(), self.params.id)
        except Exception as error:  # kept for Create, whatever it is
            self.keep(error)

    def keep(self, error: Exception) -> None:
        """Remember the first error for Create."""
        if self.error is None:
            self.error = error
        expected = isinstance(error, ShimError)
        _log.error("sandbox cannot be prepared: %s", error, exc_info=None if expected else error)

    def start_vm(self, bundle: Path, container_id: str) -> None:
        """Plan the first container of *bundle* and start the VM for it. Raises ShimError, OSError."""
        from .oci import bundle as oci_bundle
        from .oci import transform

        self.spec = oci_bundle.load(bundle)
        annotations = _annotations(self.spec)
        self._load_settings(annotations)
        self.plan = transform.transform(
            self.spec,
            transform.TransformContext(
                container_id=container_id,
                guest_rootfs=f"{GUEST_ROOTFS}/{container_id}",
                guest_volumes=f"{GUEST_VOLUMES}/{container_id}",
                guest_netns=GUEST_NETNS,
                bundle=str(bundle),
            ),
        )
        size = self._size(annotations)
        self.phases.mark("planned")
        self._start_host_side(container_id)
        self.phases.mark("host_ready")
        self._spawn_vmm(size.vcpus, size.memory_mib)
        self.phases.mark("vmm_spawned")

    def take_tap_fds(self) -> list[int]:
        """The descriptors of the taps, which are the caller's from now on; empty the second time."""
        taken, self._tap_fds = self._tap_fds, []
        return taken

    def close(self) -> None:
        """Close descriptors that nobody took over. May be called twice."""
        for fd in self.take_tap_fds():
            os.close(fd)
        if self.hello_listener is not None:
            self.hello_listener.close()

    # The steps, in order.

    def _isolate(self) -> None:
        from vmm import sys as native

        from . import storage

        # Mounts of this sandbox are seen here and in the VMM only; the host's still arrive.
        storage.enter_private_namespace()
        native.set_child_subreaper()
        native.set_process_name("strato-shim")
        self._raise_oom_score()

    def _raise_oom_score(self) -> None:
        path = Path("/proc/self/oom_score_adj")
        try:
            # containerd's own score is inherited; a shim goes right after it (containerd: pkg/sys).
            path.write_text(str(min(1000, int(path.read_text()) + 1)))
        except OSError as error:
            _log.warning("oom_score_adj stays as it is: %s", error.strerror)

    def _load_settings(self, annotations: Mapping[str, str] | None = None) -> None:
        self.settings = config.load_settings(
            options_path=self.params.options_path,
            options_body=self.params.options_body,
            annotations=annotations,
        )
        early_log.set_level(self.log_level)

    def _take_state_dir(self) -> None:
        root = self.settings.shim.state_root
        self.layout = Layout(
            Path(names.state_dir(str(root), self.params.address, self.params.namespace, self.group))
        )
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.layout.root.mkdir(mode=0o700, exist_ok=True)
        lock_fd = state.lock(self.layout.root)
        if lock_fd is None:
            raise HostError(f"State directory {self.layout.root} belongs to a shim that still runs")
        self.lock_fd = lock_fd
        self.layout.qmp.unlink(missing_ok=True)
        leftovers.remove_tree(str(self.layout.runtime))
        self.layout.runtime.mkdir(mode=0o700, exist_ok=True)
        self.layout.jail.mkdir(mode=0o700, exist_ok=True)

    def _size(self, annotations: Mapping[str, str]) -> Any:
        from .oci import resources

        vm = self.settings.vm
        host_memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        return resources.vm_size(
            self.spec,
            annotations,
            resources.SizeSettings(
                default_vcpus=vm.default_vcpus,
                default_memory_mib=vm.default_memory_mib,
                memory_overhead_mib=vm.overhead_mib,
                max_vcpus=vm.max_vcpus or os.cpu_count() or 1,
                max_memory_mib=vm.max_memory_mib or host_memory_mib,
                allowed_annotations=frozenset(
                    config.ANNOTATION_PREFIX + name for name in self.settings.annotations.allow
                ),
            ),
        )

    def _start_host_side(self, container_id: str) -> None:
        """Cgroup, shared directory, holder with its network namespace, and the spare taps in there."""
        from vmm import paths

        from . import cgroups, network, storage

        self.cgroup = cgroups.SandboxCgroup(self.plan.host_cgroup, container_id)
        self.cgroup.create(cpus=self.plan.cpuset_cpus, mems=self.plan.cpuset_mems)
        self._save_cgroups()
        self.shared = storage.SharedDirectory(self.layout.shared)
        self.shared.prepare()
        self.holder_pid = launch.start_holder(
            paths.library_dir() / "strato-holder",
            netns=self.plan.netns_path,
            title=f"strato: {container_id}",
            cgroups=self.cgroup.directories,
            log_fd=2,
        )
        netns_fd = os.open(f"/proc/{self.holder_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.taps = network.open_spare_taps(netns_fd, self.settings.vm.spare_nics)
            self._tap_fds = [tap.fd for tap in self.taps]
        finally:
            os.close(netns_fd)

    def _save_cgroups(self) -> None:
        # All else dies with this process; `delete` must find these also before Sandbox writes its state.
        file = state.StateFile(self.layout.root)
        file.data.update(shim=state.process_entry(os.getpid()), cgroups=list(self.cgroup.created))
        file.save()

    def _spawn_vmm(self, vcpus: int, memory_mib: int) -> None:
        import json

        from vmm import paths
        from vmm.errors import VmmError, chain_text
        from vmm.jail.view import enabled, launch_options

        try:
            document = self._vm_config(vcpus, memory_mib)
        except VmmError as error:
            raise HostError(chain_text(error)) from error
        self.hello_listener = _listen(self.layout.hello)
        qmp_listener = _listen(self.layout.qmp)
        config_fd = os.memfd_create("strato-vm-config", os.MFD_CLOEXEC)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            os.write(config_fd, json.dumps(document).encode())
            os.lseek(config_fd, 0, os.SEEK_SET)
            command = launch.VmCommand(
                config_fd=config_fd,
                qmp_fd=qmp_listener.fileno(),
                log_fd=writing,
                tap_fds=tuple(tap.fd for tap in self.taps),
                cgroups=tuple(self.cgroup.directories),
                log_level=early_log.VMM_LEVELS[self.log_level],
                jail=tuple(launch_options(document, str(self.layout.jail))) if enabled(document) else (),
            )
            self.vmm_pid = launch.launch_vmm(paths.launcher(), command)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(config_fd)
            os.close(writing)
            qmp_listener.close()
        self.vmm_log = reading

    def _vm_config(self, vcpus: int, memory_mib: int) -> dict[str, Any]:
        """The VmConfig in its JSON form."""
        from vmm import paths
        from vmm.jail.facts import completed
        from vmm.log import Log

        settings = self.settings
        kernel = settings.vm.kernel or paths.kernel()
        image = settings.vm.image or paths.initramfs()
        for what, path in (("Guest kernel", kernel), ("Guest image", image)):
            if not path.is_file():
                raise HostError(f"{what} {path} does not exist; build it (make build) or configure another")
        document = {
            "name": self.group[:128],
            "engine": settings.vm.engine,
            "runtime_dir": str(self.layout.runtime),
            "boot": {
                "kernel": str(kernel),
                "initrd": str(image),
                "cmdline": settings.vm.kernel_params,
            },
            "cpu": {"count": vcpus},
            "memory": {"size_mib": memory_mib},
            "nets": [
                {"id": f"net{index}", "tap_fd": tap.fd, "mac": tap.mac, "link_up": False}
                for index, tap in enumerate(self.taps)
            ],
            "vsock": {"guest_cid": GUEST_CID, "socket": str(self.layout.vsock)},
            "shares": self._shares(),
            "console": {"log": str(self.layout.console_log)},
            "programs": self._programs(),
            "jail": {
                "enabled": settings.jail.enabled,
                "folders": [str(self.layout.shared)],
                "forbidden_call": settings.jail.forbidden_call,
            },
        }
        return completed(document, Log())

    def _shares(self) -> list[dict[str, Any]]:
        caches = {
            ROOTFS_TAG: self.settings.shares.rootfs_cache,
            VOLUMES_TAG: self.settings.shares.volumes_cache,
        }
        shares: list[dict[str, Any]] = [{"tag": tag, "cache": cache} for tag, cache in caches.items()]
        if self.settings.programs.virtiofsd is not None:
            # It cannot add and remove: it shows all that is below.
            folders = {ROOTFS_TAG: self.layout.shared / "rootfs", VOLUMES_TAG: self.layout.shared / "volumes"}
            for share in shares:
                share["directory"] = str(folders[share["tag"]])
        return shares

    def _programs(self) -> dict[str, str]:
        programs = self.settings.programs
        chosen = {
            "qemu": programs.qemu,
            "virtiofsd": programs.virtiofsd,
            "vhost_device_vsock": programs.vhost_device_vsock,
        }
        return {name: str(path) for name, path in chosen.items() if path is not None}


def _annotations(spec: Mapping[str, Any]) -> dict[str, str]:
    from .oci import spec as oci_spec

    return oci_spec.annotations_of(spec)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(16)
    listener.setblocking(False)
    _log.debug("listening", extra=early_log.fields(path=path))
    return listener
