import pytest

from shim.errors import SpecRefusedError
from shim.mount_options import compact_lowerdirs, parse_options

pytestmark = pytest.mark.unit


def test_options_become_flags_propagation_and_data() -> None:
    options = parse_options(["rbind", "ro", "nosuid", "rslave", "size=1m", "mode=755"])

    assert options.flags == 0x1000 | 0x4000 | 0x1 | 0x2
    assert options.propagation == (1 << 19 | 0x4000,)
    assert options.data == ("size=1m", "mode=755")


def test_later_option_wins() -> None:
    assert parse_options(["ro", "nodev", "rw", "dev"]).flags == 0
    assert parse_options(["rw", "ro"]).flags == 1


@pytest.mark.parametrize("option", ["loop", "loop=/dev/loop0", "uidmap=0:1:2", "X-containerd.mkfs.fs=ext4"])
def test_option_of_a_helper_is_refused(option: str) -> None:
    with pytest.raises(SpecRefusedError, match="not supported"):
        parse_options([option])


def test_compact_lowerdirs_makes_them_relative() -> None:
    directory, data = compact_lowerdirs(
        ["index=off", "lowerdir=/s/snapshots/12/fs:/s/snapshots/3/fs", "upperdir=/s/u"]
    )

    assert directory == "/s/snapshots"
    assert data == ["index=off", "lowerdir=12/fs:3/fs", "upperdir=/s/u"]


@pytest.mark.parametrize("value", ["/a:/b", "/s/a\\:b:/s/c", "/s/a::/s/b", "a:b"])
def test_compact_lowerdirs_of_what_has_no_common_directory_changes_nothing(value: str) -> None:
    assert compact_lowerdirs([f"lowerdir={value}"]) == ("", [f"lowerdir={value}"])


def test_compact_lowerdirs_of_one_layer_keeps_its_name() -> None:
    assert compact_lowerdirs(["lowerdir=/s/1/fs"]) == ("/s/1", ["lowerdir=fs"])
