"""A bundle directory: reading its config.json. Nothing in a bundle is ever rewritten.

Called by the shim at Create and by the `start` and `delete` verbs (which only look for annotations).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import HostError, SpecError
from . import spec

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

CONFIG_NAME = "config.json"
# A guest spec has to fit into one ttrpc message of 4 MiB (ttrpc: PROTOCOL.md), and is never longer than this.
CONFIG_SIZE_MAX = 3 << 20


def read_config(bundle: Path) -> bytes:
    """The bytes of the bundle's config.json.

    Raises SpecError if it is missing, not a regular file or longer than CONFIG_SIZE_MAX, HostError if it
    cannot be read.
    """
    path = bundle / CONFIG_NAME
    try:
        # A fifo in its place must not block the shim.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise SpecError("$", f"There is no {path}") from error
    except OSError as error:
        raise HostError(f"Cannot open {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SpecError("$", f"{path} is not a regular file")
        chunks: list[bytes] = []
        left = CONFIG_SIZE_MAX + 1
        while left > 0 and (chunk := os.read(descriptor, left)):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        raise HostError(f"Cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if left <= 0:
        raise SpecError("$", f"{path} is longer than {CONFIG_SIZE_MAX} bytes")
    return b"".join(chunks)


def load(bundle: Path) -> dict[str, Any]:
    """The bundle's config.json as an object, not yet checked any further. Raises SpecError, HostError."""
    return spec.parse(read_config(bundle))
