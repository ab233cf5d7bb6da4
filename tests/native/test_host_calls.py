"""Namespaces, mounts, taps and process attributes through libstrato_sys.so."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm import sys as native
from vmm.paths import launcher
from vmm.sys import host

from .conftest import Descriptors

pytestmark = pytest.mark.native


@pytest.fixture
def netns(fds: Descriptors) -> Iterator[int]:
    """Descriptor of a fresh network namespace that a sleeping child holds."""
    pid = native.launch(str(launcher()), ["--new", "net", "--", "/bin/sleep", "1000"]).pid
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    fds.own(fd)
    yield fd
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def ip(netns: int, *words: str) -> str:
    command = ["nsenter", f"--net=/proc/self/fd/{netns}", "ip", *words]
    return subprocess.run(command, capture_output=True, text=True, pass_fds=[netns], check=True).stdout


def in_thread(work: Callable[[], None]) -> None:
    """Run something that changes the thread's namespaces in a thread of its own."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_tap_lives_in_its_namespace_as_long_as_its_descriptor(netns: int, fds: Descriptors) -> None:
    tap = native.open_tap(netns, "tap0", mtu=1400)
    fds.own(tap)
    shown = ip(netns, "-o", "-d", "link", "show", "tap0")
    assert "mtu 1400" in shown and ",UP" in shown
    assert "vnet_hdr on" in shown and "persist off" in shown
    assert not os.get_inheritable(tap)
    assert "tap0" not in os.listdir("/sys/class/net")  # noqa: PTH208
    fds.close(tap)
    assert "tap0" not in ip(netns, "-o", "link")


def test_tap_can_stay_down(netns: int, fds: Descriptors) -> None:
    fds.own(native.open_tap(netns, "tap1", up=False))
    assert "state DOWN" in ip(netns, "-o", "link", "show", "tap1")


def test_tap_errors_name_the_interface(netns: int, fds: Descriptors) -> None:
    fds.own(native.open_tap(netns, "tap2"))
    with pytest.raises(OSError, match="Cannot make tap tap2: Device or resource busy"):
        native.open_tap(netns, "tap2")
    with pytest.raises(OSError, match="Interface name"):
        native.open_tap(netns, "a-name-that-is-too-long")
    with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
        native.open_tap(9999, "tap3")


def test_netlink_socket_works_on_its_namespace(netns: int) -> None:
    with socket.socket(fileno=native.netlink_socket(netns)) as link:
        # struct nlmsghdr {len 32, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, seq 1, pid 0} and struct ifinfomsg
        header = (32).to_bytes(4, "little") + (18).to_bytes(2, "little") + (0x301).to_bytes(2, "little")
        link.settimeout(10)
        link.send(header + (1).to_bytes(4, "little") + bytes(4) + bytes(16))
        answer = link.recv(65536)
    assert b"lo\0" in answer
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    assert all(name.encode() + b"\0" not in answer for name in names)


def test_mount_umount_and_detached_trees_in_a_private_namespace(tmp_path: Path) -> None:
    def work() -> None:
        native.unshare(host.CLONE_NEWNS)
        native.mount(None, "/", flags=host.MS_REC | host.MS_SLAVE)
        native.mount("none", tmp_path, "tmpfs", host.MS_NODEV, "size=64k")
        (tmp_path / "file").write_text("x")
        (tmp_path / "there").mkdir()
        tree = native.open_tree(tmp_path, host.OPEN_TREE_CLONE)
        native.mount_setattr("", host.AT_EMPTY_PATH, set_attributes=host.MOUNT_ATTR_RDONLY, dirfd=tree)
        native.move_mount("", tmp_path / "there", host.MOVE_MOUNT_F_EMPTY_PATH, from_dirfd=tree)
        os.close(tree)
        assert (tmp_path / "there" / "file").read_text() == "x"
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "there" / "new").write_text("y")
        native.umount(tmp_path / "there")
        native.umount(tmp_path, host.MNT_DETACH)

    in_thread(work)
    assert list(tmp_path.iterdir()) == []


def test_setns_enters(netns: int) -> None:
    def work() -> None:
        native.setns(netns, host.CLONE_NEWNET)
        assert [name for _, name in socket.if_nameindex()] == ["lo"]

    before = Path("/proc/self/ns/net").readlink()
    in_thread(work)
    assert Path("/proc/self/ns/net").readlink() == before


def test_errors_are_the_usual_subclasses_with_the_librarys_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Cannot unmount .*/nothing: No such file or directory"):
        native.umount(tmp_path / "nothing")
    with pytest.raises(OSError, match=r"Cannot mount none .type tmpfs. on /nonexistent with flags 0x2"):
        native.mount("none", "/nonexistent", "tmpfs", host.MS_NOSUID)
    with pytest.raises(ValueError, match="NUL"):
        native.umount("/a\0b")
    with pytest.raises(OSError, match="Cannot make /proc the root"):
        native.pivot_root("/proc", "/nonexistent")


def in_child(script: str) -> str:
    """Run a snippet where it cannot harm the tests."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def test_process_attributes_are_set() -> None:
    output = in_child(
        "import threading, ctypes; from vmm import sys as native\n"
        "native.set_process_name('strato-shim')\n"
        "print(open('/proc/self/comm').read().strip())\n"
        "t = threading.Thread(target=native.set_process_name, args=('from-a-thread',)); t.start(); t.join()\n"
        "print(open('/proc/self/comm').read().strip())\n"
        "native.set_child_subreaper(); native.set_parent_death_signal(15)\n"
        "libc = ctypes.CDLL(None); v = ctypes.c_int()\n"
        "libc.prctl(37, ctypes.byref(v)); print(v.value); libc.prctl(2, ctypes.byref(v)); print(v.value)\n"
    )
    assert output.split() == ["strato-shim", "from-a-thread", "1", "15"]


def test_close_range_closes_and_marks() -> None:
    output = in_child(
        "import os; from vmm import sys as native\n"
        "a, b = os.dup2(0, 50), os.dup2(0, 51)\n"
        "native.close_range(51, flags=native.host.CLOSE_RANGE_CLOEXEC); print(os.get_inheritable(51))\n"
        "native.close_range(50, 50)\n"
        "print([fd for fd in (0, 50, 51) if os.path.exists(f'/proc/self/fd/{fd}')])\n"
    )
    assert output == "False\n[0, 51]\n"


def test_tsc_methods_agree() -> None:
    measured = native.read_tsc(native.TscMethod.MEASURED)
    best = native.read_tsc()
    assert best.method_name in ("kvm", "perf", "measured")
    assert native.tsc_khz() == pytest.approx(measured.khz, rel=200e-6)
    assert best.khz == pytest.approx(measured.khz, rel=200e-6)
