"""Writes ``vmm/sys/_strato_sys.py``, the module through which cffi calls libstrato_sys.so.

Run as ``python vmm/native/generate.py`` after every change of the header ``sys/include/strato_sys.h``; a
test compares the committed file with what this script makes. Needs cffi with its parser, which nothing needs
at run time. It stands outside of the package, which cannot be imported while its generated part is missing.
"""

import contextlib
import tempfile
from pathlib import Path

HEADER = Path(__file__).resolve().parent / "sys" / "include" / "strato_sys.h"
"""The C declarations, in the subset that cffi parses unaided."""

MODULE = Path(__file__).resolve().parent.parent / "sys" / "_strato_sys.py"
"""The generated module."""


def generated_source() -> str:
    """Return the text of the generated module (cffi's out-of-line ABI mode)."""
    from cffi import FFI

    ffi = FFI()
    ffi.set_source("_strato_sys", None)
    ffi.cdef(HEADER.read_text())
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "_strato_sys.py"
        with contextlib.redirect_stdout(None):  # it announces the file
            ffi.emit_python_code(str(target))
        return target.read_text()


def main() -> None:
    """Write the module."""
    MODULE.write_text(generated_source())


if __name__ == "__main__":
    main()
