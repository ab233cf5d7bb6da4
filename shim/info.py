"""`-info` and `-v`: what this runtime is. Called by containerd 2.2 and later once per runtime."""

from __future__ import annotations

import os

from . import __version__
from .params import encode_field

RUNTIME_NAME = "io.containerd.strato.v2"


def print_version() -> int:
    """Free text on stdout."""
    os.write(1, f"containerd-shim-strato-v2 {__version__}\n".encode())
    return 0


def print_info(request: bytes) -> int:
    """A RuntimeInfo message on stdout; *request* holds options that make no difference."""
    version = encode_field(1, __version__.encode())
    os.write(1, encode_field(1, RUNTIME_NAME.encode()) + encode_field(2, version))
    return 0
