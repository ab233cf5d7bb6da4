"""Attribution of objects to fragments, and the cost report."""

import pytest

from rootfs.kernel.attribution import Attribution, Makefiles, initcalls, object_sizes
from rootfs.kernel.config import Fragment
from rootfs.kernel.report import costs, initcall_times, milestones, render

pytestmark = pytest.mark.unit

_MAKEFILES = {
    "fs": "obj-$(CONFIG_EXT4_FS) += ext4/\nobj-y += open.o\n",
    "fs/ext4": (
        "obj-$(CONFIG_EXT4_FS) += ext4.o\n"
        "ext4-y := balloc.o \\\n\tbitmap.o\n"
        "ext4-$(CONFIG_EXT4_ACL) += acl.o\n"
    ),
    "drivers/net": "obj-$(CONFIG_TUN) += tun.o # taps\n",
    "lib": "lib-y := ctype.o\nobj-$(CONFIG_SUB) += sub/part.o\n",
}
_FRAGMENTS = (
    Fragment("filesystems", {"EXT4_FS": "y"}),
    Fragment("network", {"TUN": "y"}),
    Fragment("off", {"X": "n"}),
)


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("fs/ext4/ext4.o", "filesystems"),
        ("fs/ext4/bitmap.o", "filesystems"),
        ("fs/ext4/acl.o", "filesystems"),
        ("drivers/net/tun.o", "network"),
        ("fs/open.o", "core"),
        ("lib/ctype.o", "core"),
    ],
)
def test_owner_of_object(path: str, owner: str) -> None:
    assert Attribution(Makefiles(_MAKEFILES), _FRAGMENTS).owner(path) == owner


def test_symbols_of_object_named_from_a_folder_above() -> None:
    assert list(Makefiles(_MAKEFILES).symbols_of("lib/sub/part.o")) == ["SUB"]


def test_initcalls_reads_paths_and_functions_of_every_level() -> None:
    listing = (
        "/o/vmlinux.a:/o/fs/fuse/inode.o:0000 r __initcall__kmod_fuse__600_2281_fuse_init6\n"
        "/o/vmlinux.a:/o/init/initramfs.o:0000 r __initcall__kmod_initramfs__604_779_populate_rootfsrootfs\n"
        "/o/vmlinux.a:/o/init/initramfs.o:0000 T populate_rootfs\n"
    )

    assert list(initcalls(listing)) == [
        ("/o/fs/fuse/inode.o", "fuse_init"),
        ("/o/init/initramfs.o", "populate_rootfs"),
    ]


def test_object_sizes_adds_text_data_and_bss() -> None:
    listing = (
        "   text\t   data\t    bss\t    dec\t    hex\tfilename\n"
        "     10\t     20\t      3\t     33\t     21\ta/b.o (ex x.a)\n"
    )

    assert list(object_sizes(listing)) == [("a/b.o", 33)]


def test_initcall_times_and_milestones_from_a_log() -> None:
    log = (
        "<6>[    0.104049] SLUB: HWalign=64\n"
        "<7>[    0.2] initcall tun_init+0x0/0x90 returned 0 after 1234 usecs\n"
        "<7>[    0.3] initcall odd_init+0x0/0x90 returned -19 after 5 usecs\n"
        "<6>[    0.460924] Run /init as init process\n"
    )

    assert initcall_times(log) == {"tun_init": 1234, "odd_init": 5}
    assert milestones(log) == {"memory set up": 0.104049, "user space": 0.460924}


def test_costs_are_medians_by_fragment_and_small_ones_share_a_line() -> None:
    boots = [{"a": 9000, "b": 100}, {"a": 7000, "b": 300}, {"a": 90000, "b": 200}]

    table = costs(boots, {"a": "network"}, {"network": 2048, "time": 1024})

    assert [(cost.name, cost.boot_us) for cost in table] == [("network", 9000), ("core", 200), ("time", 0)]
    text = render(table)
    assert "| network | 9.0 | 2 | a 9.0 |" in text
    assert "| core, time | 0.2 together | 1 | |" in text
