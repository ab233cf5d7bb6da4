"""Bind mounts are live shares: host and container see each other's changes, read-only holds,
propagation works.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.ctr import Ctr
from tests.framework.specs import SpecFactory

pytestmark = pytest.mark.containerd


def bind(source: Path, target: str, options: str = "rbind:rw") -> tuple[str, str]:
    """The `ctr` option for one bind mount."""
    return ("--mount", f"type=bind,src={source},dst={target},options={options}")


@pytest.fixture
def specs(ctr: Ctr, tmp_path: Path) -> SpecFactory:
    """Makes complete config.json files."""
    return SpecFactory(ctr, tmp_path)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A host directory with one file in it."""
    directory = tmp_path / "volume"
    directory.mkdir()
    (directory / "hello").write_text("from host\n")
    return directory


def test_directory_is_shared_both_ways_while_running(ctr: Ctr, volume: Path) -> None:
    name = ctr.run_detached("sleep", "1000", options=bind(volume, "/data"))
    assert ctr.exec(name, "cat", "/data/hello").check().text == "from host"
    ctr.exec(name, "sh", "-c", "echo from guest > /data/reply").check()
    assert (volume / "reply").read_text() == "from guest\n"
    # At once: a volume's names, attributes and contents are not cached (docs/storage.md).
    (volume / "hello").write_text("changed on the host\n")
    assert ctr.exec(name, "cat", "/data/hello").check().text == "changed on the host"
    (volume / "later").write_text("new\n")
    assert ctr.exec(name, "cat", "/data/later").check().text == "new"
    (volume / "later").unlink()
    assert ctr.exec(name, "test", "-e", "/data/later").status == 1


def test_change_of_the_host_is_seen_in_the_root_file_system_within_a_second(
    ctr: Ctr, specs: SpecFactory
) -> None:
    name = ctr.new_id()
    path = specs.write(name, ["sleep", "1000"])
    ctr.call(*ctr.run_spec(name, path, "--detach", "--null-io")).check()
    assert ctr.exec(name, "cat", "/etc/motd").status == 1
    (specs.root / "etc/motd").write_text("first\n")
    eventually(lambda: ctr.exec(name, "cat", "/etc/motd").text == "first", "a new file is seen", timeout_s=5)
    (specs.root / "etc/motd").write_text("second\n")
    # Opening anew finds the new time and length, whatever was cached.
    assert ctr.exec(name, "cat", "/etc/motd").check().text == "second"


def test_single_file_is_shared(ctr: Ctr, volume: Path) -> None:
    script = "cat /etc/greeting; echo from guest > /etc/greeting"
    result = ctr.run("sh", "-c", script, options=bind(volume / "hello", "/etc/greeting")).check()
    assert result.text == "from host"
    assert (volume / "hello").read_text() == "from guest\n"


def test_read_only_volume_cannot_be_written(ctr: Ctr, volume: Path) -> None:
    result = ctr.run(
        "sh", "-c", "cat /data/hello; echo x > /data/new", options=bind(volume, "/data", "rbind:ro")
    )
    assert result.status != 0
    assert "Read-only file system" in result.error_text
    assert [entry.name for entry in volume.iterdir()] == ["hello"]


def test_several_volumes_keep_apart(ctr: Ctr, tmp_path: Path) -> None:
    options: list[str] = []
    for number in range(5):
        source = tmp_path / f"v{number}"
        source.mkdir()
        (source / "number").write_text(str(number))
        options += bind(source, f"/v{number}")
    assert ctr.run("sh", "-c", "cat /v*/number", options=options).check().text == "01234"


def test_owner_and_mode_pass_both_ways(ctr: Ctr, volume: Path) -> None:
    (volume / "hello").chmod(0o640)
    os.chown(volume / "hello", 1000, 50)
    script = "cd /data; stat -c '%a %u %g' hello; touch new; chown 12:34 new; chmod 4711 new"
    assert ctr.run("sh", "-c", script, options=bind(volume, "/data")).check().text == "640 1000 50"
    made = (volume / "new").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o4711, 12, 34)


def test_links_fifos_and_renames_work_on_a_volume(ctr: Ctr, volume: Path) -> None:
    script = (
        "cd /data; ln -s hello soft; ln hello hard; mkfifo pipe; cat soft; mkdir -p a/b; mv hello a/b/moved"
    )
    assert ctr.run("sh", "-c", script, options=bind(volume, "/data")).check().text == "from host"
    assert (volume / "pipe").is_fifo()
    assert (volume / "soft").readlink() == Path("hello")
    assert (volume / "hard").samefile(volume / "a/b/moved")


def test_large_file_written_by_the_container_is_whole_on_the_host(ctr: Ctr, volume: Path) -> None:
    result = ctr.run(
        "sh",
        "-c",
        "dd if=/dev/urandom of=/data/big bs=64k count=64 2>&1; md5sum < /data/big",
        options=bind(volume, "/data"),
    )
    host = subprocess.run(["md5sum", volume / "big"], check=True, capture_output=True, text=True).stdout
    assert result.check().text.split()[-2] == host.split()[0]


@pytest.fixture
def later_mount(volume: Path) -> Iterator[Path]:
    """A directory below the volume that the test mounts something on; unmounted afterwards."""
    target = volume / "sub"
    target.mkdir()
    yield target
    subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)


@pytest.fixture
def shared_parent(volume: Path) -> Iterator[Path]:
    """The volume as a mount of its own with shared propagation, as a kubelet has its volumes."""
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    subprocess.run(["mount", "--make-shared", volume], check=True)
    yield volume
    subprocess.run(["umount", "--lazy", volume], check=True)


def test_later_host_mount_appears_under_rslave(ctr: Ctr, shared_parent: Path) -> None:
    below = shared_parent / "sub"
    below.mkdir()
    name = ctr.run_detached("sleep", "1000", options=bind(shared_parent, "/data", "rbind:rslave:rw"))
    assert ctr.exec(name, "ls", "/data/sub").check().text == ""
    subprocess.run(["mount", "-t", "tmpfs", "strato-test", below], check=True)
    try:
        (below / "inside").write_text("x")
        eventually(
            lambda: ctr.exec(name, "ls", "/data/sub").check().text == "inside",
            "the later mount shows up in the container",
            timeout_s=10,
        )
    finally:
        # Lazily: the reference virtiofsd keeps descriptors of what the guest has looked at
        # (docs/limitations.md).
        subprocess.run(["umount", "--lazy", below], check=True)
    eventually(
        lambda: ctr.exec(name, "ls", "/data/sub").check().text == "",
        "the unmount shows up in the container",
        timeout_s=10,
    )


def test_mounts_below_a_recursive_volume_are_visible_at_once(
    ctr: Ctr, volume: Path, later_mount: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "strato-test", later_mount], check=True)
    (later_mount / "inside").write_text("deep\n")
    assert ctr.run("cat", "/data/sub/inside", options=bind(volume, "/data")).check().text == "deep"


def test_tmpfs_mount_lives_in_the_container_with_its_size(ctr: Ctr) -> None:
    options = ("--mount", "type=tmpfs,src=tmpfs,dst=/scratch,options=size=8388608:mode=1777:nosuid")
    script = (
        "df -k /scratch | tail -1 | awk '{print $2}'; grep ' /scratch ' /proc/mounts | cut -d' ' -f3; "
        "stat -c %a /scratch"
    )
    assert ctr.run("sh", "-c", script, options=options).check().text.splitlines() == ["8192", "tmpfs", "1777"]


def test_changes_to_the_root_file_system_stay_in_the_container(ctr: Ctr) -> None:
    name = ctr.run_detached("sh", "-c", "echo mine > /etc/mine; rm /etc/group; sleep 1000")
    eventually(lambda: ctr.exec(name, "cat", "/etc/mine").stdout == b"mine\n", "file written")
    assert ctr.exec(name, "test", "-e", "/etc/group").status == 1
    assert ctr.run("test", "-e", "/etc/mine").status == 1
