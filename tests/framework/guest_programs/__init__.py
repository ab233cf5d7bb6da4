"""Small static programs for the guest, compiled when a test asks for them, and initramfs archives
holding them.
"""

import shutil
from pathlib import Path

from tests.framework import compiler


def compile_static(name: str, directory: Path) -> Path:
    """Puts `<name>.c` of this folder as a static program below `directory` and returns its path.

    Raises subprocess.CalledProcessError after the compiler's words when that fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(compiler.guest_program(name), directory / name))


def initramfs(init: Path) -> bytes:
    """A cpio archive (newc, as Documentation/driver-api/early-userspace/buffer-format.rst) with
    `init` as /init.
    """
    entries = [("dev", 0o040755, b""), ("init", 0o100755, init.read_bytes()), ("TRAILER!!!", 0, b"")]
    return b"".join(
        _cpio_entry(number, name, mode, data) for number, (name, mode, data) in enumerate(entries, 1)
    )


def _cpio_entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _pad(header + encoded) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
