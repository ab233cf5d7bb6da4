import stat
import subprocess
from pathlib import Path

import pytest

from tests.framework.debian_kernel import DebianKernel, dependencies
from tests.framework.runtime import MissingToolError
from tests.lab import initramfs

pytestmark = pytest.mark.unit

INDEX = """\
kernel/virt/lib/irqbypass.ko:
kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko
kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko kernel/virt/lib/irqbypass.ko
kernel/drivers/net/tun.ko:
"""


@pytest.fixture
def kernel(tmp_path: Path) -> DebianKernel:
    """An unpacked kernel without any module in it but their index."""
    tree = tmp_path / "lib/modules/6.1"
    tree.mkdir(parents=True)
    (tree / "modules.dep").write_text(INDEX)
    return DebianKernel(tmp_path)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and data by name of everything in a cpio archive of the newc form."""
    found: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[offset + 110 : offset + 109 + name_size].decode()
        if name == "TRAILER!!!":
            return found
        start = (offset + 110 + name_size + 3) & ~3
        found[name] = (mode, archive[start : start + size])
        offset = (start + size + 3) & ~3


def test_modules_come_after_what_they_need_and_once(kernel: DebianKernel) -> None:
    order = kernel.load_order("kvm-amd", "tun", "kvm")

    assert names(order) == ["irqbypass.ko", "kvm.ko", "kvm-amd.ko", "tun.ko"]
    assert order[0] == kernel.module_root / "6.1/kernel/virt/lib/irqbypass.ko"


def test_dashes_and_underscores_of_module_names_are_the_same(kernel: DebianKernel) -> None:
    assert kernel.load_order("kvm_amd") == kernel.load_order("kvm-amd")
    assert "kvm_amd" in dependencies(INDEX)


def test_unknown_module_is_named(kernel: DebianKernel) -> None:
    with pytest.raises(MissingToolError, match="no module zfs"):
        kernel.load_order("zfs")


def test_archive_holds_modules_in_load_order_and_programs_that_can_run(tmp_path: Path) -> None:
    modules = [tmp_path / f"{letter}.ko" for letter in "zyxwvutsrqpo"]
    for module in modules:
        module.write_text(module.name)
    (tmp_path / "busybox").write_bytes(b"\x7fELF")

    found = entries(initramfs.build(tmp_path / "busybox", modules))

    # As the shell's `*` expands: sorted by name.
    packed = sorted(name for name in found if name.startswith("modules/"))
    assert [found[name][1].decode() for name in packed] == names(modules)
    assert found["bin/busybox"] == (stat.S_IFREG | 0o755, b"\x7fELF")
    assert found["init"][0] == stat.S_IFREG | 0o755
    assert found["init"][1].startswith(b"#!/bin/busybox sh\n")


@pytest.mark.parametrize("script", ["init.sh", "host.sh"])
def test_scripts_are_ones_that_a_shell_can_read(script: str) -> None:
    path = Path(initramfs.__file__).with_name(script)

    assert subprocess.run(["sh", "-n", path], check=False, capture_output=True, text=True).stderr == ""
