"""The guest image: an initramfs with the agent as /init, mount points, and nothing else.

Called by `tools.guest` with the built agent. Uncompressed by default: a VMM copies it into guest memory
anyway, and unpacking would cost every start more than the copy does. The kernel also takes gzip and zstd.
"""

import gzip
from pathlib import Path

from .cpio import Node, character_device, directory, regular, write_cpio
from .errors import ImageError

# Part of the cache key: raise it when this file or cpio.py changes what a build yields.
BUILDER_VERSION = 1

# The whole image lives in guest memory for as long as the sandbox does.
MAX_UNPACKED_BYTES = 12 * 1024 * 1024

# Mount points of the agent. /run, /tmp and /dev/shm become tmpfs.
_DIRECTORIES = ("dev", "proc", "run", "sys", "tmp")


def image_nodes(agent: bytes) -> list[Node]:
    """What the image holds, given the agent's program.

    Raises ImageError when that is no ELF program or when the image would be too large.
    """
    if not agent.startswith(b"\x7fELF"):
        raise ImageError("The agent is not an ELF program; build guest-agent first")
    nodes = [directory(path) for path in _DIRECTORIES]
    # The kernel opens /dev/console for PID 1 before anything is mounted (init/main.c, console_on_rootfs).
    nodes.append(character_device("dev/console", 5, 1))
    nodes.append(regular("init", agent, 0o755))
    size = sum(len(node.data) for node in nodes)
    if size > MAX_UNPACKED_BYTES:
        raise ImageError(
            f"The guest image would hold {size} bytes, more than {MAX_UNPACKED_BYTES}; make the agent smaller"
        )
    return nodes


def write_image(agent: Path, output: Path, *, compress: bool = False) -> int:
    """Write the image for an agent's program to `output`, and return its size in bytes.

    The same agent gives the same bytes. Raises ImageError and OSError.
    """
    archive = write_cpio(image_nodes(agent.read_bytes()))
    if compress:
        archive = gzip.compress(archive, mtime=0)
    output.write_bytes(archive)
    return len(archive)
