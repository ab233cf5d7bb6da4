"""The errors of libstrato_sys.so: those of `vmm.libraries`, and one of the pump's own.

OSError (the kernel said no; the usual subclasses by errno, such as FileNotFoundError)
├── PumpOwnerError     a pump was used in a forked child
└── NativeBugError     a panic was caught at the library's border
LibraryMismatchError   an ImportError: the library and this package do not belong together
"""

import errno

from .. import libraries
from ..libraries import LibraryMismatchError, NativeBugError

__all__ = ["LibraryMismatchError", "NativeBugError", "PumpOwnerError", "native_error"]


class PumpOwnerError(OSError):
    """A pump was used in another process than the one that made it."""


def native_error(code: int, text: str) -> OSError:
    """Return the exception for a positive errno; ``text`` is the library's whole sentence."""
    if code == errno.EOWNERDEAD:
        return PumpOwnerError(code, text)
    return libraries.native_error(code, text)
