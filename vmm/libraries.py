"""The native libraries: where they are, whether they belong to this package, and their errors.

Used by ``vmm.sys.calls`` (libstrato_sys.so) and ``vmm.devices.calls`` (libstrato_vmm.so) at import, which
must cost next to nothing: no typing, pathlib, enum or dataclasses here. Native errors become exceptions in
this module's table, which ``vmm.sys.errors`` extends.

OSError (the kernel said no; the usual subclasses by errno, such as FileNotFoundError)
└── NativeBugError     a panic was caught at a library's border
LibraryMismatchError   an ImportError: a library and this package do not belong together
"""

from __future__ import annotations

import errno
import os
import posixpath

from . import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class LibraryMismatchError(ImportError):
    """A native library is missing, or was built from another version than this package."""


class NativeBugError(OSError):
    """The library panicked: a bug in it. Its own report is on stderr."""


def native_error(code: int, text: str) -> OSError:
    """Return the exception for a positive errno; ``text`` is the library's whole sentence."""
    if code == errno.ENOTRECOVERABLE:
        return NativeBugError(code, text)
    return OSError(code, text)


def library_path(name: str) -> str:
    """Return the path of a library (it need not exist).

    The same answer as `vmm.paths.library_dir`, without its imports. A test compares them.
    """
    override = os.environ.get("STRATO_LIBRARY_DIR")
    if override:
        return posixpath.join(override, name)
    packages = posixpath.dirname(posixpath.dirname(posixpath.realpath(__file__)))
    parent = posixpath.dirname(packages)
    if posixpath.basename(packages) == "python" and posixpath.basename(parent) == "strato":
        return posixpath.join(parent, name)
    bundled = posixpath.join(packages, "vmm", "_native")
    if posixpath.isdir(bundled):
        return posixpath.join(bundled, name)
    return posixpath.join(packages, "build", "lib", "strato", name)


def load(ffi: Any, prefix: str, abi_version: int, structs: Sequence[str]) -> Any:
    """Load ``lib<prefix>.so`` and compare versions and struct sizes. Raises LibraryMismatchError."""
    path = library_path(f"lib{prefix}.so")
    try:
        lib = ffi.dlopen(path)
    except OSError as error:
        raise LibraryMismatchError(
            f"Native library {path} cannot be loaded: {error}; build it (make build)"
        ) from error
    try:
        found = getattr(lib, f"{prefix}_abi_version")()
        version = ffi.string(getattr(lib, f"{prefix}_version")()).decode()
        if (found, version) != (abi_version, VERSION):
            raise LibraryMismatchError(
                f"Native library {path} is version {version} with interface {found}, but this package is "
                f"{VERSION} with interface {abi_version}; rebuild it (make build)"
            )
        sizes = {name: getattr(lib, f"{prefix}_sizeof_{name}")() for name in structs}
    except (AttributeError, ffi.error) as error:
        raise LibraryMismatchError(
            f"Native library {path} lacks a function: {error}; rebuild it (make build)"
        ) from error
    for name, size in sizes.items():
        expected = ffi.sizeof(f"{prefix}_{name}")
        if expected != size:
            raise LibraryMismatchError(
                f"Struct {prefix}_{name} has {size} bytes in {path} but {expected} in the header; "
                "run python vmm/native/generate.py"
            )
    return lib


def last_error(ffi: Any, function: Any) -> str:
    """Return the sentence of this thread's last failed call; ``function`` is the library's ``last_error``."""
    length = function(ffi.NULL, 0)
    buffer = ffi.new("char[]", length + 1)
    function(buffer, length + 1)
    text: bytes = ffi.string(buffer)
    return text.decode(errors="replace")
