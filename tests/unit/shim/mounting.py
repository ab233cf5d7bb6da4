"""Mount system calls through libc, and a thread with its own mount namespace to use them in."""

import ctypes
import os
import threading
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)


class LibcCalls:
    """`shim.storage.MountCalls` without the native library."""

    def unshare(self, flags: int) -> None:
        _check(_LIBC.unshare(flags))

    def mount(
        self, source: str | None, target: str, fstype: str | None, flags: int, data: str | None
    ) -> None:
        texts = [None if text is None else os.fsencode(text) for text in (source, target, fstype, data)]
        _check(_LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))

    def umount(self, target: str, flags: int) -> None:
        _check(_LIBC.umount2(os.fsencode(target), flags))


def in_new_namespace(action: Callable[[], None]) -> None:
    """Runs action in a thread whose mount namespace is new and private; raises what it raises."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            calls = LibcCalls()
            calls.unshare(0x00020000)
            calls.mount(None, "/", None, 0x4000 | 1 << 19, None)
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
