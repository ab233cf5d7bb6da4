"""The daemons that tests run against: releases 1.6 and 2.3, and 2.3 with the runtime speaking gRPC.

A `TestDaemon` bundles one private containerd with its runtime configuration, its client and its leak scope.
It lives as long as the fixture that made it; the image is imported when it starts.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from shim.config import ShimSettings
from tools import image
from tools.containerd import Containerd, ContainerdSettings, scratch_directory
from vmm.config import EngineName

from .ctr import IMAGE, Ctr
from .engine import wanted_engine
from .host import cgroup_roots
from .leaks import Scope
from .patience import patient
from .runtime import Runtime, tool_directory, write_config

ALL_DAEMONS = ("1.6", "2.3", "2.3-grpc")
DEFAULT_DAEMONS = ("2.3",)
SHIM_SOCKETS = Path("/run/containerd/s")
# Of the shims that tests drive without a daemon (shim_process.py).
DIRECT_NAMESPACE = "strato-direct"


@dataclass(frozen=True)
class DaemonOptions:
    """One daemon: its kind (of ALL_DAEMONS) and the runtime under test."""

    kind: str
    runtime: Runtime


class TestDaemon:
    """A running containerd with everything that tests need around it."""

    __test__ = False  # the name is not a test's

    def __init__(self, options: DaemonOptions) -> None:
        self.options = options
        self.directory = scratch_directory()
        self.state_root = self.directory / "s"
        self.direct_address = self.directory / "x.sock"
        self.config_path = self.directory / "config.toml"
        self.containerd = Containerd(self._containerd_settings())
        self.cgroup = f"strato-test-{os.getpid()}"
        self.ctr = Ctr(
            self.containerd, runtime=options.runtime.name, namespace="strato-test", cgroup=self.cgroup
        )

    @property
    def scope(self) -> Scope:
        """Where this daemon's containers could leave something."""
        return Scope(self.cgroup, self.directory, self.state_root, self._shim_sockets)

    def _shim_sockets(self) -> list[Path]:
        # Named as containerd's own shims name theirs (containerd: pkg/shim/util_unix.go, SocketAddress).
        places = ((self.containerd.address, self.ctr.namespace), (self.direct_address, DIRECT_NAMESPACE))
        names = [f"{address}/{space}/{name}" for address, space in places for name in self.ctr.issued]
        return [SHIM_SOCKETS / hashlib.sha256(name.encode()).hexdigest() for name in names]

    def __enter__(self) -> Self:
        self.write_config()
        self.containerd.start()
        archive = self.directory / "busybox.tar"
        layers = [image.layer_tar(image.busybox_entries(image.find_busybox()))]
        image.write_if_changed(archive, image.docker_archive(IMAGE, layers, image.ImageConfig()))
        self.ctr.call("image", "import", archive).check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.containerd.running:
                self.ctr.remove_all()
            self.containerd.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._remove_cgroups()

    def log_lines(self, begin: int) -> list[str]:
        """What containerd has logged beyond its log's first `begin` bytes."""
        with self.containerd.log_path.open("rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace").splitlines()

    def write_config(self, **sections: Mapping[str, object]) -> None:
        """Writes the runtime's configuration: the daemon's own settings with those of `sections`
        over them.
        """
        own: dict[str, object] = {
            "state_root": self.state_root,
            "log_level": "debug",
            "create_timeout_s": patient(ShimSettings.create_timeout_s),
        }
        if self.options.kind.endswith("-grpc"):
            # Only then: a configuration that speaks of the transport makes `start` read it.
            own["transport"] = "grpc"
        sections = {**sections, "shim": {**own, **sections.get("shim", {})}}
        if wanted_engine() is not EngineName.AUTO:
            sections["vm"] = {"engine": str(wanted_engine()), **sections.get("vm", {})}
        write_config(self.config_path, sections)

    def _containerd_settings(self) -> ContainerdSettings:
        release = self.options.kind.partition("-")[0]
        env = {"STRATO_CONFIG": str(self.config_path)}
        if self.options.kind.endswith("-grpc"):
            # containerd 2.3 takes a gRPC connection that has carried no call yet for a lost one, if the
            # goroutine that watches it runs before the first call (core/runtime/v2/shim.go, grpcDialContext).
            # With one processor and a state directory whose writes never block it does not.
            env["GOMAXPROCS"] = "1"
        return ContainerdSettings(
            bin_dir=tool_directory(f"containerd-{release}"),
            directory=self.directory / "d",
            state_dir=self._state_dir(),
            start_timeout_s=patient(ContainerdSettings.start_timeout_s),
            path=(*self.options.runtime.programs, tool_directory("runc-")),
            env=env,
        )

    def _state_dir(self) -> Path:
        # On a tmpfs where there is one, as /run/containerd is on most machines.
        memory = Path("/dev/shm")
        return memory / self.directory.name if memory.is_dir() else self.directory / "d/state"

    def _remove_cgroups(self) -> None:
        for root in cgroup_roots():
            top: Path = root / self.cgroup
            if top.is_dir():
                for directory, _, _ in os.walk(top, topdown=False):
                    Path(directory).rmdir()
