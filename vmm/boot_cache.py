"""Facts about the host that hold until it boots again, kept in /run/strato.

Small files of JSON, written whole or not at all. What is read is trusted only when root (or we ourselves) own
it and it is of this boot; whoever asks checks the values. Used for what takes long to find out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .log import Log

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

MAX_BYTES = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read(path: Path) -> dict[str, Any]:
    """Return what is known of this boot; empty for no file, a broken one or somebody else's."""
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid not in (0, os.geteuid()):
                return {}
            document = json.loads(stream.read(MAX_BYTES))
        if isinstance(document, dict) and document.get("boot_id") == _boot_id():
            return document
    except (OSError, ValueError, RecursionError):
        pass  # as good as no file
    return {}


def write(path: Path, facts: dict[str, Any], log: Log) -> None:
    """Keep facts for this boot; a host that does not let us only makes the next question slower."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"boot_id": _boot_id(), **facts}))
        temporary.replace(path)
    except OSError as error:
        log.debug("Not cached", path=path, cause=error)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
