"""Complete config.json files for tests that need more of the OCI spec than `ctr` has options for.

A `SpecFactory` starts from what `ctr oci spec` prints and points the root at an unpacked busybox tree, the
way Docker hands its containers over (no mounts from a snapshotter).
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools import image

from .ctr import Ctr

Spec = dict[str, Any]
Change = Callable[[Spec], None]


def unpack(entries: Sequence[image.Entry], root: Path) -> None:
    """Writes a layer's entries below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for entry in sorted(entries, key=lambda item: item.path):
        path = root / entry.path
        if entry.link is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(entry.link)
        elif entry.data is None:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(entry.mode)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.data)
            path.chmod(entry.mode)


class SpecFactory:
    """Makes config.json files below `directory` for containers of one daemon."""

    def __init__(self, ctr: Ctr, directory: Path) -> None:
        self._ctr = ctr
        self._directory = directory
        self.root = directory / "rootfs"
        unpack(image.busybox_entries(image.find_busybox()), self.root)
        self._base: Spec = json.loads(ctr.call("oci", "spec").check().stdout)

    def spec(self, container_id: str, process: Sequence[str], change: Change | None = None) -> Spec:
        """A spec for one container after `change` was applied to it."""
        spec = copy.deepcopy(self._base)
        spec["root"] = {"path": str(self.root)}
        spec["process"].update(args=list(process), env=["PATH=/bin"], terminal=False, cwd="/")
        spec["linux"]["cgroupsPath"] = f"/{self._ctr.cgroup}/{container_id}"
        if change is not None:
            change(spec)
        return spec

    def write(self, container_id: str, process: Sequence[str], change: Change | None = None) -> Path:
        """Writes `spec(...)` to a file and returns its path."""
        path = self._directory / f"{container_id}.json"
        path.write_text(json.dumps(self.spec(container_id, process, change)), encoding="utf-8")
        return path
