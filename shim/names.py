"""Names that start, daemon and delete must agree on: group, socket, state directory. Light imports only."""

from __future__ import annotations

import os

DEFAULT_SOCKET_DIR = "/run/containerd/s"
DEFAULT_STATE_ROOT = "/run/strato"
SOCKET_PATH_LIMIT = 106
"""containerd refuses longer shim socket paths (sun_path is 108)."""

ENDED_NAME = "strato.ended"
"""File of a bundle that says: the sandbox has ended in order, and nothing of it is left but its daemon."""

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")


def sha256_hex(text: str) -> str:
    """sha256 of *text* in hex, from the small built-in module (hashlib loads OpenSSL)."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # Python 3.12 and later
        from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore, no-redef]
    return str(sha256(text.encode()).hexdigest())


def group_of(bundle: str, own_id: str) -> str:
    """The sandbox that container *own_id* belongs to: from the annotations in its config.json, else itself.

    A missing or unreadable config.json means no group: Create reports what is wrong with it.
    """
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:  # noqa: PTH118, PTH123 (pathlib is slow)
            raw = file.read()
    except OSError:
        return own_id
    if not any(key.encode() in raw for key in GROUP_ANNOTATIONS):
        return own_id
    import json

    try:
        annotations = json.loads(raw).get("annotations") or {}
        for key in GROUP_ANNOTATIONS:
            if isinstance(annotations.get(key), str) and annotations[key]:
                return str(annotations[key])
    except (ValueError, AttributeError):
        pass
    return own_id


def has_ended(bundle: str) -> bool:
    """Whether the sandbox that was started in *bundle* has removed everything of itself."""
    return os.path.exists(os.path.join(bundle, ENDED_NAME))  # noqa: PTH110, PTH118


def socket_path(address: str, namespace: str, group: str, socket_dir: str = "") -> str:
    """The shim's socket, by containerd's convention (pkg/shim: SocketAddress)."""
    digest = sha256_hex("/".join(part for part in (address, namespace, group) if part))
    return f"{socket_dir or DEFAULT_SOCKET_DIR}/{digest}"


def state_dir(state_root: str, address: str, namespace: str, group: str) -> str:
    """The sandbox's state directory (design.md section 4)."""
    return f"{state_root}/{sha256_hex(f'{address}/{namespace}/{group}')[:20]}"
