"""The private folder of a `strato vm run`: locked while it is in use, so that the next run can remove what a
killed one has left.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

PREFIX = "strato-vm-"


class Scratch(NamedTuple):
    """A folder and the descriptor that locks it; the lock lasts as long as any copy of the descriptor."""

    path: Path
    lock_fd: int


@contextmanager
def scratch_folder() -> Iterator[Scratch]:
    """Make a folder and remove it at the end; before that, remove those whose runs were killed."""
    _remove_stale(Path(tempfile.gettempdir()))
    made = _make()
    try:
        yield made
    finally:
        os.close(made.lock_fd)
        shutil.rmtree(made.path, ignore_errors=True)


def _make() -> Scratch:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Another run may have taken it for a stale one before it was locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(fd)):
                return Scratch(path, fd)
        os.close(fd)


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone, somebody else's, or no folder
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(fd)
