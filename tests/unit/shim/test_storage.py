"""SharedDirectory on real mounts, in mount namespaces of throw-away threads."""

import errno
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.errors import HostError, SpecError, SpecRefusedError
from shim.oci.transform import VolumeRequest
from shim.storage import RootfsMount, SharedDirectory, remove_leftovers

from .mounting import LibcCalls, in_new_namespace

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(os.geteuid() != 0, reason="Mounting needs root"),
]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    before = Path("/proc/self/mountinfo").read_text()
    directory = tmp_path / "state"
    directory.mkdir()
    yield directory
    assert Path("/proc/self/mountinfo").read_text() == before


def _volume(source: Path | str, index: int = 0, **changes: object) -> VolumeRequest:
    values: dict[str, object] = {
        "index": index,
        "source": str(source),
        "recursive": True,
        "readonly": False,
        "propagation": "rprivate",
        "options": ("rbind",),
        "json_path": f"$.mounts[{index}].source",
    }
    return VolumeRequest(**{**values, **changes})  # type: ignore[arg-type]


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def _with_shared(state: Path, action: Callable[[SharedDirectory], None]) -> None:
    def run() -> None:
        shared = SharedDirectory(state / "shared", calls=LibcCalls())
        shared.prepare()
        try:
            action(shared)
        finally:
            shared.close()
            shared.close()
        assert _names(state) == []

    in_new_namespace(run)


def _overlay(base: Path, layers: int = 1) -> RootfsMount:
    names = [f"{'layer' * 8}-{number}" for number in range(layers)]
    for name in names:
        (base / name / "fs").mkdir(parents=True)
        (base / name / "fs" / name).write_text(name)
    (base / "up").mkdir()
    (base / "work").mkdir()
    lowers = ":".join(str(base / name / "fs") for name in names)
    options = (f"lowerdir={lowers}", f"upperdir={base / 'up'}", f"workdir={base / 'work'}")
    return RootfsMount("overlay", "overlay", options=options)


def test_rootfs_of_an_overlay_is_mounted_and_removed(state: Path, tmp_path: Path) -> None:
    mount = _overlay(tmp_path / "snapshots", 2)

    def check(shared: SharedDirectory) -> None:
        shared.add_rootfs("one", [mount], None)
        root = shared.rootfs_directory / "one"
        assert len(_names(root)) == 2
        (root / "new").write_text("hello")
        shared.remove_container("one")
        shared.remove_container("one")
        assert not root.exists()

    _with_shared(state, check)

    assert (tmp_path / "snapshots" / "up" / "new").read_text() == "hello"


def test_rootfs_with_options_beyond_a_page_is_mounted(state: Path, tmp_path: Path) -> None:
    mount = _overlay(tmp_path / "snapshots", 60)
    assert len(",".join(mount.options)) > 4096
    here = Path.cwd()

    def check(shared: SharedDirectory) -> None:
        shared.add_rootfs("one", [mount], None)
        assert len(_names(shared.rootfs_directory / "one")) == 60

    _with_shared(state, check)

    assert Path.cwd() == here


def test_nothing_in_a_share_is_a_device_or_a_program_to_the_host(state: Path, tmp_path: Path) -> None:
    overlay = _overlay(tmp_path / "snapshots")
    plain = tmp_path / "plain"
    (plain / "below").mkdir(parents=True)

    def check(shared: SharedDirectory) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", plain / "below"], check=True)
        shared.add_rootfs("one", [overlay], None)
        shared.add_rootfs("two", [RootfsMount("bind", str(plain), options=("bind",))], None)
        shared.add_rootfs("three", [], str(plain))
        shared.add_volume("one", _volume(plain))
        os.mknod(plain / "below" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        volume = shared.volumes_directory / "one" / "0"
        for root in (*shared.rootfs_directory.iterdir(), volume, volume / "below"):
            flags = os.statvfs(root).f_flag
            assert flags & os.ST_NODEV and flags & os.ST_NOSUID and flags & os.ST_NOEXEC, root
        with pytest.raises(PermissionError):
            (volume / "below" / "null").open()

    _with_shared(state, check)


def test_rootfs_of_a_readonly_bind_cannot_be_written(state: Path, tmp_path: Path) -> None:
    source = tmp_path / "view"
    source.mkdir()

    def check(shared: SharedDirectory) -> None:
        shared.add_rootfs("one", [RootfsMount("bind", str(source), options=("rbind", "ro"))], None)
        with pytest.raises(OSError, match="Read-only") as caught:
            (shared.rootfs_directory / "one" / "x").touch()
        assert caught.value.errno == errno.EROFS

    _with_shared(state, check)


def test_rootfs_without_mounts_is_the_host_s_root_directory(state: Path, tmp_path: Path) -> None:
    source = tmp_path / "merged"
    source.mkdir()

    def check(shared: SharedDirectory) -> None:
        shared.add_rootfs("one", [], str(source))
        (shared.rootfs_directory / "one" / "x").touch()

    _with_shared(state, check)

    assert (source / "x").exists()


@pytest.mark.parametrize(
    ("mounts", "error", "text"),
    [
        ([RootfsMount("overlay", "overlay", options=("lowerdir=/absent",))], HostError, "one"),
        ([RootfsMount("ext4", "/absent.img", options=("loop",))], SpecRefusedError, "loop"),
        ([RootfsMount("fuse.x", "x")], SpecRefusedError, "helper"),
        ([RootfsMount("tmpfs", "tmpfs"), RootfsMount("tmpfs", "t", "../up")], SpecRefusedError, "outside"),
        ([], SpecError, "neither"),
    ],
)
def test_rootfs_that_cannot_be_mounted_leaves_nothing(
    state: Path, mounts: list[RootfsMount], error: type[Exception], text: str
) -> None:
    def check(shared: SharedDirectory) -> None:
        with pytest.raises(error, match=text):
            shared.add_rootfs("one", mounts, None)
        assert _names(shared.rootfs_directory) == []

    _with_shared(state, check)


def test_guest_cannot_write_beside_the_mounts(state: Path) -> None:
    def check(shared: SharedDirectory) -> None:
        for directory in (shared.rootfs_directory, shared.volumes_directory):
            with pytest.raises(OSError, match="Read-only"):
                (directory / "x").touch()

    _with_shared(state, check)


def test_volumes_are_live_both_ways(state: Path, tmp_path: Path) -> None:
    directory, file = tmp_path / "data", tmp_path / "hosts"
    directory.mkdir()
    file.write_text("old")

    def check(shared: SharedDirectory) -> None:
        shared.add_volume("one", _volume(directory))
        shared.add_volume("one", _volume(file, 1))
        volumes = shared.volumes_directory / "one"
        (directory / "down").write_text("1")
        assert (volumes / "0" / "down").read_text() == "1"
        (volumes / "0" / "up").write_text("2")
        (volumes / "1").write_text("new")
        shared.remove_container("one")
        assert not volumes.exists()

    _with_shared(state, check)

    assert (directory / "up").read_text() == "2"
    assert file.read_text() == "new"


def test_readonly_volume_is_so_with_all_below_it(state: Path, tmp_path: Path) -> None:
    source = tmp_path / "data dir"
    (source / "sub").mkdir(parents=True)

    def check(shared: SharedDirectory) -> None:
        LibcCalls().mount("tmpfs", str(source / "sub"), "tmpfs", 0, None)
        shared.add_volume("one", _volume(source, readonly=True))
        volume = shared.volumes_directory / "one" / "0"
        for target in (volume / "x", volume / "sub" / "x"):
            with pytest.raises(OSError, match="Read-only"):
                target.touch()
        (source / "sub" / "x").touch()
        assert (volume / "sub" / "x").exists()

    _with_shared(state, check)


def test_non_recursive_volume_shows_no_mounts_below(state: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)

    def check(shared: SharedDirectory) -> None:
        LibcCalls().mount("tmpfs", str(tmp_path / "data" / "sub"), "tmpfs", 0, None)
        (tmp_path / "data" / "sub" / "x").touch()
        shared.add_volume("one", _volume(tmp_path / "data", recursive=False))
        assert not (shared.volumes_directory / "one" / "0" / "sub" / "x").exists()

    _with_shared(state, check)


@pytest.mark.parametrize(("propagation", "appears"), [("rslave", True), ("rprivate", False)])
def test_later_mounts_of_the_host_reach_slave_volumes_in_the_vmm_s_namespace(
    state: Path, tmp_path: Path, propagation: str, appears: bool
) -> None:
    host = tmp_path / "host"
    (host / "sub").mkdir(parents=True)
    calls = LibcCalls()
    host_thread: list[int] = []

    def on_the_host(*command: str) -> None:
        namespace = f"-m/proc/{os.getpid()}/task/{host_thread[0]}/ns/mnt"
        subprocess.run(["nsenter", namespace, *command], check=True)

    def in_shim(shared: SharedDirectory) -> None:
        # A backend of the VMM: in a slave copy of the namespace, made before anything is shared, it binds
        # the directory that it serves onto itself and keeps that only, as virtiofsd does.
        script = 'mount --rbind "$1" "$1"; cd "$1"; echo up; while read f; do test -e "$f"; echo $?; done'
        vmm = subprocess.Popen(
            [
                *("unshare", "-m", "--propagation", "slave"),
                *("sh", "-c", script, "backend", str(shared.volumes_directory)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert vmm.stdin is not None
        assert vmm.stdout is not None
        with vmm:
            assert vmm.stdout.readline() == "up\n"

            def sees(path: Path) -> bool:
                print(path, file=vmm.stdin, flush=True)
                return vmm.stdout.readline() == "0\n"  # type: ignore[union-attr]

            shared.add_volume("one", _volume(host, propagation=propagation))
            volume = Path("one", "0")
            assert sees(volume / "sub")
            on_the_host("mount", "-t", "tmpfs", "late", str(host / "sub"))
            on_the_host("touch", str(host / "sub" / "late"))
            assert sees(volume / "sub" / "late") is appears
            shared.remove_container("one")
            assert not sees(volume)
            vmm.stdin.close()

    def on_host() -> None:
        host_thread.append(threading.get_native_id())
        calls.mount(str(host), str(host), None, 0x1000, None)
        calls.mount(None, str(host), None, 1 << 20, None)
        _with_shared(state, in_shim)

    in_new_namespace(on_host)


def test_missing_source_names_path_and_source(state: Path) -> None:
    def check(shared: SharedDirectory) -> None:
        with pytest.raises(SpecError, match=r"\$\.mounts\[3\]\.source.*'/absent'"):
            shared.add_volume("one", _volume("/absent", 3))

    _with_shared(state, check)


def test_special_files_are_refused(state: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)
        listener.bind("sock")
        os.chdir(here)

    def check(shared: SharedDirectory) -> None:
        for index, source in enumerate([Path("/dev/null"), tmp_path / "fifo", tmp_path / "sock"]):
            with pytest.raises(SpecRefusedError, match=r"character device|fifo|socket"):
                shared.add_volume("one", _volume(source, index))

    _with_shared(state, check)


def test_container_id_that_leads_elsewhere_is_an_error(state: Path) -> None:
    def check(shared: SharedDirectory) -> None:
        with pytest.raises(SpecError):
            shared.add_rootfs("../x", [], "/")
        with pytest.raises(SpecError):
            shared.remove_container("..")

    _with_shared(state, check)


def test_leftovers_of_a_dead_shim_are_removed(state: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")

    def die() -> None:
        shared = SharedDirectory(state / "shared", calls=LibcCalls())
        shared.prepare()
        shared.add_rootfs("one", [], str(tmp_path))
        shared.add_volume("one", _volume(tmp_path))
        shared.add_volume("one", _volume(tmp_path / "file", 1))
        shared._descriptors.close()  # as the kernel does at death

    in_new_namespace(die)
    assert (state / "shared" / "rootfs" / "one").exists()

    remove_leftovers(state / "shared")
    remove_leftovers(state / "shared")

    assert _names(state) == []
    assert (tmp_path / "file").read_text() == "kept"


def test_prepare_takes_over_what_a_dead_shim_left(state: Path) -> None:
    (state / "shared" / "rootfs" / "old").mkdir(parents=True)
    (state / "staging").mkdir()

    _with_shared(state, lambda shared: None)


def test_leftovers_with_a_file_that_is_not_ours_stay(state: Path) -> None:
    (state / "shared" / "volumes" / "one").mkdir(parents=True)
    (state / "shared" / "volumes" / "one" / "0").write_text("data")

    with pytest.raises(HostError, match="Cannot remove"):
        remove_leftovers(state / "shared")

    assert (state / "shared" / "volumes" / "one" / "0").exists()
