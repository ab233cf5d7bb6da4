"""Native errors become exceptions here and nowhere else.

OSError (the kernel said no; the usual subclasses by errno, such as FileNotFoundError)
├── PumpOwnerError     a pump was used in a forked child
└── NativeBugError     a panic was caught at the library's border
LibraryMismatchError   an ImportError: the library and this package do not belong together
"""

import errno


class LibraryMismatchError(ImportError):
    """libstrato_sys.so is missing, or was built from another version than this package."""


class PumpOwnerError(OSError):
    """A pump was used in another process than the one that made it."""


class NativeBugError(OSError):
    """The library panicked: a bug in it. Its own report is on stderr."""


_SPECIAL: dict[int, type[OSError]] = {
    errno.EOWNERDEAD: PumpOwnerError,
    errno.ENOTRECOVERABLE: NativeBugError,
}


def native_error(code: int, text: str) -> OSError:
    """Return the exception for a positive errno; ``text`` is the library's whole sentence."""
    special = _SPECIAL.get(code)
    if special is not None:
        return special(code, text)
    return OSError(code, text)
