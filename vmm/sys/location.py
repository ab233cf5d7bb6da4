"""Where libstrato_sys.so is: the same answer as `vmm.paths.library_dir`, without its imports.

`vmm.paths` needs pathlib and shutil, which cost more than the whole of ``vmm.sys`` may. A test compares them.
"""

import os
import posixpath

_LIBRARY_NAME = "libstrato_sys.so"


def library_path() -> str:
    """Return the path of the library (it need not exist)."""
    override = os.environ.get("STRATO_LIBRARY_DIR")
    if override:
        return posixpath.join(override, _LIBRARY_NAME)
    packages = posixpath.dirname(posixpath.dirname(posixpath.dirname(posixpath.realpath(__file__))))
    parent = posixpath.dirname(packages)
    if posixpath.basename(packages) == "python" and posixpath.basename(parent) == "strato":
        return posixpath.join(parent, _LIBRARY_NAME)
    bundled = posixpath.join(packages, "vmm", "_native")
    if posixpath.isdir(bundled):
        return posixpath.join(bundled, _LIBRARY_NAME)
    return posixpath.join(packages, "build", "lib", "strato", _LIBRARY_NAME)
