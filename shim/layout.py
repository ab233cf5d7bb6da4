"""Where a sandbox keeps what, below its state directory. Pure names."""

from __future__ import annotations

from pathlib import Path

from vmm.record import record

GUEST_ROOTFS = "/run/strato/shares/rootfs"
GUEST_VOLUMES = "/run/strato/shares/volumes"
ROOTFS_TAG = "rootfs"
VOLUMES_TAG = "volumes"
GUEST_NETNS = "/run/strato/netns"
GUEST_CID = 3


@record(frozen=True)
class Layout:
    """The files of one sandbox."""

    root: Path

    @property
    def vsock(self) -> Path:
        """Made by strato-vmm: connections from host to guest."""
        return self.runtime / "vsock.sock"

    @property
    def hello(self) -> Path:
        """Made by the shim: where the guest's connection to host port 1024 arrives."""
        return self.runtime / "vsock.sock_1024"

    @property
    def qmp(self) -> Path:
        """strato-vmm's QMP socket; the shim listens and hands the listener over."""
        return self.root / "qmp.sock"

    @property
    def runtime(self) -> Path:
        """strato-vmm's own folder (VmConfig.runtime_dir), the only one that it can write to. What is in there
        is as little to be trusted as strato-vmm itself: see `vmm.untrusted`."""
        return self.root / "vmm"

    @property
    def jail(self) -> Path:
        """An empty folder: strato-vmm's root, in its own mount namespace."""
        return self.root / "jail"

    @property
    def exit_report(self) -> Path:
        """Written by strato-vmm before it ends."""
        return self.runtime / "exit.json"

    @property
    def shared(self) -> Path:
        """What the guest sees: `rootfs/<container>` and `volumes/<container>/<n>`."""
        return self.root / "shared"

    @property
    def console_log(self) -> Path:
        """The guest's console, bounded."""
        return self.runtime / "console.log"

    @property
    def shim_log(self) -> Path:
        """The shim's own lines, bounded."""
        return self.root / "shim.log"

    @property
    def vmm_log(self) -> Path:
        """The lines of strato-vmm and what it runs, bounded."""
        return self.root / "vmm.log"
