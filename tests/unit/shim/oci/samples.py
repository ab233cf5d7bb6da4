"""Specs as ctr, containerd's CRI plugin and docker write them (hand-made, in ./data), for the oci tests."""

import copy
import json
from pathlib import Path
from typing import Any

from shim.oci.transform import GuestPlan, TransformContext, transform

CONTEXT = TransformContext(
    container_id="hello",
    guest_rootfs="/run/strato/shares/rootfs/hello",
    guest_volumes="/run/strato/shares/volumes/hello",
    guest_netns="/run/strato/netns",
    bundle="/run/bundle/hello",
)
NAMES = ("ctr", "cri", "docker")


def sample(name: str = "ctr") -> dict[str, Any]:
    spec = json.loads((Path(__file__).parent / "data" / f"{name}.json").read_text())
    assert isinstance(spec, dict)
    return spec


def edited(path: str, value: object, name: str = "ctr") -> dict[str, Any]:
    """The sample with the member at a dotted path set (numbers index arrays, one past the end appends)."""
    spec = sample(name)
    *parents, last = path.split(".")
    target: Any = spec
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    if isinstance(target, list):
        target[int(last) :] = [copy.deepcopy(value), *target[int(last) + 1 :]]
    else:
        target[last] = copy.deepcopy(value)
    return spec


def plan(spec: dict[str, Any], context: TransformContext = CONTEXT) -> GuestPlan:
    return transform(spec, context)


def with_mount(**mount: object) -> dict[str, Any]:
    """The ctr sample with one more mount, which is then $.mounts[8]."""
    return edited("mounts.8", {"destination": "/x", **mount})
