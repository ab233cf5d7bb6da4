"""Writes the modules through which cffi calls the native libraries, each from the library's C header.

Run as ``python vmm/native/generate.py`` after every change of a header; a test compares the committed files
with what this script makes. Needs cffi with its parser, which nothing needs at run time. It stands outside of
the packages, which cannot be imported while their generated parts are missing.
"""

import contextlib
import tempfile
from pathlib import Path

_NATIVE = Path(__file__).resolve().parent

HEADERS = {
    _NATIVE.parent / "sys" / "_strato_sys.py": _NATIVE / "sys" / "include" / "strato_sys.h",
    _NATIVE.parent / "devices" / "_strato_vmm.py": _NATIVE / "abi" / "include" / "strato_vmm.h",
}
"""The generated modules and their C declarations, in the subset that cffi parses unaided."""


def generated_source(module: Path) -> str:
    """Return the text of a generated module (cffi's out-of-line ABI mode)."""
    from cffi import FFI

    ffi = FFI()
    ffi.set_source(module.stem, None)
    ffi.cdef(HEADERS[module].read_text())
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / module.name
        with contextlib.redirect_stdout(None):  # it announces the file
            ffi.emit_python_code(str(target))
        return target.read_text()


def main() -> None:
    """Write the modules."""
    for module in HEADERS:
        module.write_text(generated_source(module))


if __name__ == "__main__":
    main()
