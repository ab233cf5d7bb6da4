"""The test host's first root file system: busybox, the modules that it takes to reach the machine's files and
KVM, and our scripts. Built for each start; it takes some milliseconds.
"""

from collections.abc import Sequence
from pathlib import Path

from rootfs.cpio import character_device, directory, regular, write_cpio

MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "kvm-amd")
"""All others are loaded when they are first needed, by the kernel's own calls of modprobe."""

_FOLDERS = ("bin", "dev", "proc", "modules", "machine", "writable", "root")
_SCRIPTS = Path(__file__).parent


def build(busybox: Path, modules: Sequence[Path]) -> bytes:
    """The archive; `modules` are loaded in that order."""
    width = len(str(len(modules)))
    return write_cpio(
        [
            *(directory(name) for name in _FOLDERS),
            character_device("dev/console", 5, 1),
            regular("bin/busybox", busybox.read_bytes(), 0o755),
            regular("init", (_SCRIPTS / "init.sh").read_bytes(), 0o755),
            regular("host.sh", (_SCRIPTS / "host.sh").read_bytes()),
            # The script loads what it finds in the order of the names.
            *(
                regular(f"modules/{number:0{width}}-{path.name}", path.read_bytes())
                for number, path in enumerate(modules)
            ),
        ]
    )
