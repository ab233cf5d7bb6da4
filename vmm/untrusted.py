"""Reading what a strato-vmm has put into its runtime folder, for those who do not trust it.

A VM that has been taken over may leave a link to a file of the host's, a fifo that nobody writes to, or a
file without an end where a log or a socket is expected. Used by the shim and the CLI; imports little.
"""

from __future__ import annotations

import os
import stat


def open_file(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading, and nothing else. Raises OSError; the caller owns the descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{os.fspath(path)} is no regular file")
    return fd


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return the last ``limit`` bytes at most of a regular file. Raises OSError."""
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        data = b""
        while len(data) < limit and (
            part := os.pread(fd, limit - len(data), max(0, size - limit) + len(data))
        ):
            data += part
        return data
    finally:
        os.close(fd)


def socket_address(path: str | os.PathLike[str]) -> tuple[int, str]:
    """Return a descriptor of a socket and the address to connect to: that socket, whatever the path becomes.

    A link is refused: it could lead to a socket of somebody else's. Raises OSError; the caller closes the
    descriptor once connected.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{os.fspath(path)} is no socket")
    return fd, f"/proc/self/fd/{fd}"
