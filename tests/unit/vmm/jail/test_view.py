"""What a strato-vmm sees: from a configuration to strato-launch's options."""

import sys
from pathlib import Path
from typing import Any

import pytest

from vmm.jail import view
from vmm.jail.view import Access, View

pytestmark = pytest.mark.unit

SMALLEST = {"name": "n", "runtime_dir": "/run/x", "boot": {"kernel": "/k"}, "engine": "tcg"}


def seen(document: dict[str, Any]) -> dict[str, Access]:
    return {item.path: item.access for item in view.machine(document)}


def test_smallest_vm_sees_its_kernel_and_its_folder() -> None:
    assert seen(SMALLEST) == {"/run/x": Access.FOLDER, "/k": Access.DATA}


def test_disks_and_shares_are_seen_as_they_may_be_used() -> None:
    document = {
        **SMALLEST,
        "boot": {"kernel": "/k", "initrd": "/i"},
        "drives": [{"id": "a", "path": "/a"}, {"id": "b", "path": "/b", "readonly": True}],
        "shares": [
            {"tag": "s", "directory": "/s"},
            {"tag": "r", "directory": "/r", "readonly": True},
            {"tag": "n"},
        ],
        "jail": {"folders": ["/f"]},
    }

    expected = {
        "/i": Access.DATA,
        "/a": Access.DEVICE,
        "/b": Access.DEVICE_READONLY,
        "/s": Access.TREE,
        "/r": Access.TREE_READONLY,
        "/f": Access.TREE,
    }
    assert seen(document) == seen(SMALLEST) | expected


@pytest.mark.parametrize(
    ("engine", "devices"), [("tcg", set()), ("kvm", {"/dev/kvm"}), ("auto", {"/dev/kvm"})]
)
def test_engine_decides_between_qemu_and_kvm(engine: str, devices: set[str]) -> None:
    found = seen({**SMALLEST, "engine": engine, "programs": {"qemu": "/usr/bin/qemu-system-x86_64"}})

    assert {path for path in found if path.startswith("/dev")} == devices
    assert (found.get("/usr/bin/qemu-system-x86_64") is Access.PROGRAM) == (engine != "kvm")


def test_tap_by_name_shows_tun() -> None:
    document = {**SMALLEST, "nets": [{"id": "n", "tap_name": "tap0", "mac": "02:00:00:00:00:01"}]}

    assert seen(document)["/dev/net/tun"] is Access.DEVICE


def test_only_shares_bring_the_capabilities_of_a_file_server() -> None:
    at_start = ["dac_override", "net_admin", "setpcap"]

    assert view.capabilities(SMALLEST) == at_start
    for changes in ({"shares": [{"tag": "s", "directory": "/s"}]}, {"jail": {"folders": ["/f"]}}):
        assert set(view.capabilities({**SMALLEST, **changes})) == {*at_start, *view.SHARE_CAPABILITIES}
    assert not {"sys_admin", "sys_ptrace", "sys_module"} & {*at_start, *view.SHARE_CAPABILITIES}


def test_installation_is_this_interpreter_and_this_package() -> None:
    found = {item.path: item.access for item in view.installation()}

    assert found[str(Path(sys.executable).resolve())] is Access.PROGRAM
    assert found[str(Path(view.__file__).parents[1])] is Access.CODE
    assert any("_cffi_backend" in path for path in found)
    assert str(Path.home()) not in found


def test_options_leave_out_optional_files_that_are_not_there() -> None:
    document = {**SMALLEST, "programs": {"qemu": "/q/bin/qemu-system-x86_64"}}
    options = view.launch_options(document, "/root", exists=lambda path: path == "/q/share/qemu/pvh.bin")

    wanted = ["--root", "/root", "--capabilities", "dac_override,net_admin,setpcap", "--no-new-privileges"]
    assert options[:5] == wanted
    shown = [word for word in options if word.startswith("/q/")]
    assert shown == ["/q/bin/qemu-system-x86_64", "/q/share/qemu/pvh.bin"]


def test_jail_is_on_unless_it_is_switched_off() -> None:
    assert view.enabled(SMALLEST)
    assert view.enabled({**SMALLEST, "jail": {}})
    assert not view.enabled({**SMALLEST, "jail": {"enabled": False}})


def test_present_keeps_required_paths_whether_they_are_there_or_not() -> None:
    views = [View(Access.DATA, "/a"), View(Access.DATA, "/b", optional=True)]

    assert [item.path for item in view.present(views, exists=lambda path: False)] == ["/a"]
