"""Where the built parts and the programs of the host are.

Called by strato-vmm, the shim and the CLI; pure look-ups, nothing is cached and nothing is created.
A checkout keeps its products in ``build/lib/strato``; an installed Strato keeps the packages in
``<prefix>/lib/strato/python`` and everything else one level up; a wheel brings its native parts in
``vmm/_native``.
"""

import os
from pathlib import Path

from .errors import ProgramNotFoundError

LIBRARY_DIR_VARIABLE = "STRATO_LIBRARY_DIR"
"""Environment variable that overrides `library_dir` (used by tests)."""

DEFAULT_STATE_ROOT = Path("/run/strato")
"""Root of the sandboxes' state directories unless the configuration names another."""

# Debian keeps helpers of QEMU out of PATH; Fedora and the stand-alone Rust virtiofsd use /usr/libexec.
_HELPER_DIRS = ("/usr/lib/qemu", "/usr/libexec", "/usr/lib")


def library_dir() -> Path:
    """Return the folder of strato-launch, the guest kernel, the guest image and the native libraries."""
    override = os.environ.get(LIBRARY_DIR_VARIABLE)
    if override:
        return Path(override)
    packages = Path(__file__).resolve().parent.parent
    if packages.name == "python" and packages.parent.name == "strato":
        return packages.parent
    bundled = packages / "vmm" / "_native"
    if bundled.is_dir():
        return bundled
    return packages / "build" / "lib" / "strato"


def kernel() -> Path:
    """Return the path of the guest kernel (it need not exist)."""
    return library_dir() / "vmlinux"


def initramfs() -> Path:
    """Return the path of the guest image (it need not exist)."""
    return library_dir() / "initramfs.img"


def launcher() -> Path:
    """Return the path of strato-launch (it need not exist)."""
    return library_dir() / "strato-launch"


def find_program(name: str, *, hint: str) -> Path:
    """Find a program that strato-vmm starts: the library folder first, then PATH, then QEMU's helper folders.

    ``hint`` tells the user how to get it. Raises ProgramNotFoundError.
    """
    folders = [str(library_dir()), *(os.environ.get("PATH") or os.defpath).split(os.pathsep), *_HELPER_DIRS]
    for folder in folders:
        # Not shutil.which: that import alone costs 3 ms of strato-vmm's start.
        program = Path(folder, name)
        if os.access(program, os.X_OK) and program.is_file():
            return program
    raise ProgramNotFoundError(f"Program {name} was not found in {os.pathsep.join(folders)}: {hint}")


def qemu() -> Path:
    """Return the QEMU system emulator of this host's architecture. Raises ProgramNotFoundError."""
    return find_program(
        f"qemu-system-{os.uname().machine}",
        hint="install it (Debian: apt-get install qemu-system-x86) or set programs.qemu",
    )


def virtiofsd() -> Path:
    """Return the C virtiofsd that comes with QEMU. Raises ProgramNotFoundError."""
    return find_program(
        "virtiofsd",
        hint="install it (Debian 12: apt-get install qemu-system-common) or set programs.virtiofsd",
    )


def strato_vhost_device() -> Path:
    """Return the program that serves our own device cores. Raises ProgramNotFoundError."""
    return find_program("strato-vhost-device", hint="build it (make build)")


def vhost_device_vsock() -> Path:
    """Return the reference vsock backend. Raises ProgramNotFoundError."""
    return find_program(
        "vhost-device-vsock",
        hint="build it (make build) or set programs.vhost_device_vsock",
    )
