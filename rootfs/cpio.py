"""Writing a cpio archive in the "newc" form that the kernel unpacks as its first root file system.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Written here rather than
by cpio(1) because the result must not depend on the file system it was made on: entries come sorted, with
fixed owners, times and inode numbers, and device nodes need no root.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ImageError

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Node:
    """One entry: `path` without a leading slash, `mode` with its file type bits (stat.S_IFREG | 0o755).

    `data` is a file's content or a link's target; `device` is the (major, minor) of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Node:
    """A folder."""
    return Node(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Node:
    """A file."""
    return Node(path, stat.S_IFREG | permissions, data)


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Node:
    """A character device node."""
    return Node(path, stat.S_IFCHR | permissions, device=(major, minor))


def write_cpio(nodes: Iterable[Node]) -> bytes:
    """The archive as bytes; equal nodes give equal bytes in whatever order they come.

    Raises ImageError for a path that is absolute, climbs up, occurs twice or lacks its parent folder.
    """
    by_path: dict[str, Node] = {}
    for node in nodes:
        _check_path(node.path)
        if node.path in by_path:
            raise ImageError(f"{node.path!r} is in the image twice; remove one")
        by_path[node.path] = node
    # Sorted by components, a folder comes before what it holds.
    ordered = sorted(by_path.values(), key=lambda node: node.path.split("/"))
    for node in ordered:
        parent = node.path.rpartition("/")[0]
        if parent and (parent not in by_path or not stat.S_ISDIR(by_path[parent].mode)):
            raise ImageError(f"{node.path!r} is in the image without its folder {parent!r}; add it")
    archive = b"".join(_entry(node, inode) for inode, node in enumerate(ordered, start=1))
    archive += _entry(Node(_TRAILER, 0), 0)
    # The kernel accepts any length; 512 is the block size of cpio(1), which other readers expect.
    return archive + b"\0" * (-len(archive) % 512)


def _check_path(path: str) -> None:
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise ImageError(f"{path!r} is no path inside an image; write it relative and without dots")


def _entry(node: Node, inode: int) -> bytes:
    name = node.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (
        inode,
        node.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime
        len(node.data),
        0,  # major and minor of the containing device
        0,
        *node.device,
        len(name),
        0,  # checksum, unused in this form
    )
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(node.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
