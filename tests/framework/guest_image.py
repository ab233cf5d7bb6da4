"""The guest image of the VM tests: a static C program as /init in an uncompressed cpio archive.

Built once per session into a folder of the caller's.
"""

from collections.abc import Mapping
from pathlib import Path

from . import compiler


def build(directory: Path, files: Mapping[str, Path] | None = None) -> Path:
    """Return the path of an initramfs that holds the init, and executable `files` by their names in the
    guest's root folder.
    """
    image = directory / "initramfs.img"
    image.write_bytes(
        _entry("dev", 0o040755)
        + _entry("dev/console", 0o020600, device=(5, 1))
        + _entry("init", 0o100755, compiler.guest_init().read_bytes())
        + b"".join(_entry(name, 0o100755, path.read_bytes()) for name, path in (files or {}).items())
        + _entry("TRAILER!!!", 0)
    )
    return image


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    # The "newc" format of cpio: Documentation/driver-api/early-userspace/buffer-format.rst in Linux
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
