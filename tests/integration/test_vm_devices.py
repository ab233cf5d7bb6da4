"""The devices of a running VM: vsock, shares, disks, interfaces, entropy."""

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.vm import DEADLINE_S, DIRECT, VmFactory, with_programs
from vmm import paths
from vmm.config import (
    DriveConfig,
    JailConfig,
    NetConfig,
    ProgramsConfig,
    RngConfig,
    ShareCache,
    ShareConfig,
    VsockConfig,
)
from vmm.errors import QmpCommandError
from vmm.sys import open_tap

from .guest_scripts import MakeVms, results

pytestmark = pytest.mark.integration

LONGEST_MESSAGE = 64 << 10  # of a vsock connection of type SEQPACKET (docs/limitations.md)
ETH_P_ALL = 3  # linux/if_ether.h

# A mark for what is served by a program instead of a device core of ours.
reference_program = pytest.mark.engine("tcg", reason="only this engine serves devices by programs")

SLAVE_NAMESPACE = ["unshare", "--mount", "--propagation", "slave", *DIRECT]


def connect_to_guest(path: Path, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    connection.connect(str(path))
    connection.sendall(f"CONNECT {port}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):
        answer += connection.recv(1)
    assert answer.startswith(b"OK ")
    return connection


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        received += connection.recv(65536)
    return received


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a mount point with shared propagation, as the shim makes it.

    To be asked for before ``vms``: a running VM keeps what is mounted below it busy.
    """
    directory = tmp_path / "share"
    (directory / "seen").mkdir(parents=True)
    (directory / "unseen").mkdir()
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "--make-shared", directory], check=True)
        yield directory
    finally:
        subprocess.run(["umount", "--recursive", directory], check=True)


@pytest.fixture(params=["strato", pytest.param("vhost-device-vsock", marks=reference_program)])
def vsock_programs(request: pytest.FixtureRequest) -> ProgramsConfig:
    """What can serve vsock: our own device core, and the reference program."""
    if request.param == "strato":
        return ProgramsConfig()
    return ProgramsConfig(vhost_device_vsock=paths.vhost_device_vsock())


@pytest.fixture(params=["strato", pytest.param("virtiofsd", marks=reference_program)])
def share_programs(request: pytest.FixtureRequest) -> ProgramsConfig:
    """What can serve shares: our own device core, and the reference program."""
    if request.param == "strato":
        return ProgramsConfig()
    return ProgramsConfig(virtiofsd=paths.virtiofsd())


def test_vsock_carries_bytes_from_host_to_guest_and_back(
    vms: VmFactory, vsock_programs: ProgramsConfig
) -> None:
    config = with_programs(vms.config(), vsock_programs)
    path = config.runtime_dir / "v.sock"
    vm = vms.boot(replace(config, vsock=VsockConfig(socket=path)))
    assert vm.ask("vsock-echo 1024") == "ok"

    for _ in range(3):
        data = os.urandom(32 << 10)
        with connect_to_guest(path, 1024) as connection:
            assert exchange(connection, data) == data


def test_guest_connects_to_a_listener_of_the_host(vms: VmFactory, vsock_programs: ProgramsConfig) -> None:
    config = with_programs(vms.config(), vsock_programs)
    path = config.runtime_dir / "v.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(DEADLINE_S)
        listener.bind(f"{path}_77")
        listener.listen()
        vm = vms.boot(replace(config, vsock=VsockConfig(socket=path)))

        assert vm.ask("vsock-say 77 hello") == "ok"
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            assert connection.recv(5) == b"hello"


def test_reset_of_the_transport_ends_connections_and_no_listener(equipped_vms: MakeVms) -> None:
    vms = equipped_vms("stream_bench")
    config = vms.config()
    path = config.runtime_dir / "v.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(DEADLINE_S)
        listener.bind(f"{path}_77")
        listener.listen()
        vm = vms.boot(replace(config, vsock=VsockConfig(socket=path)))
        assert vm.ask("vsock-echo 1024") == "ok"

        for _ in range(2):
            by_host = connect_to_guest(path, 1024)
            assert exchange(by_host, b"before") == b"before"
            vm.send("run /stream_bench receive vsock:2:77 1 100")
            by_guest, _ = listener.accept()
            by_guest.settimeout(DEADLINE_S)
            assert by_guest.recv(1) == b"r"
            by_guest.sendall(b"a part of it")
            with vm.qmp() as qmp, by_host, by_guest:
                assert qmp.execute("x-strato-reset-vsock") == {}
                assert ended(by_host) and ended(by_guest)
            vm.wait_for("recv: ")
            vm.wait_for("=> exit 1")

            # The guest's listener serves one connection after the other: it has seen the end of the first.
            with connect_to_guest(path, 1024) as connection:
                assert exchange(connection, b"after") == b"after"


def ended(connection: socket.socket) -> bool:
    """Wait for the end of a connection on which nothing is sent any more."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_reset_of_the_transport_without_vsock_is_refused(vms: VmFactory) -> None:
    vm = vms.boot()
    with vm.qmp() as qmp, pytest.raises(QmpCommandError, match="No vsock device"):
        qmp.execute("x-strato-reset-vsock")


def message_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(DEADLINE_S)
    return made


def assert_echoes_messages(connection: socket.socket) -> None:
    """Whatever their sizes and however many are under way, messages come back one by one."""
    sizes = [1, LONGEST_MESSAGE, 5000, 2, 40_000]
    for _ in range(3):
        messages = [os.urandom(size) for size in sizes]
        for message in messages:
            connection.sendall(message)
        assert [connection.recv(1 << 20) for _ in messages] == messages


def test_guest_sends_messages_to_a_listener_of_the_host(vms: VmFactory) -> None:
    config = vms.config()
    path = config.runtime_dir / "v.sock"
    with message_socket() as listener, socket.socket(socket.AF_UNIX) as stream_listener:
        listener.bind(f"{path}_77")
        listener.listen()
        stream_listener.bind(f"{path}_78")
        stream_listener.listen()
        vm = vms.boot(replace(config, vsock=VsockConfig(socket=path)))

        assert vm.ask(f"vsock-message 77 {LONGEST_MESSAGE}") == "ok"
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            assert connection.recv(1 << 20) == b"m" * LONGEST_MESSAGE
            assert_echoes_messages(connection)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        # The guest's kernel knows how long a message may be, and that nobody waits for messages at a port.
        assert vm.ask(f"vsock-message 77 {LONGEST_MESSAGE + 1}") == os.strerror(errno.EMSGSIZE)
        for port in (78, 79):
            assert vm.ask(f"vsock-message {port} 1") == os.strerror(errno.ECONNRESET)


def test_host_sends_messages_to_a_listener_of_the_guest(vms: VmFactory) -> None:
    config = vms.config()
    path = config.runtime_dir / "v.sock"
    vm = vms.boot(replace(config, vsock=VsockConfig(socket=path)))
    assert vm.ask("vsock-echo 1024 messages") == "ok"

    for _ in range(2):
        with message_socket() as connection:
            connection.connect(f"{path}_seq")
            connection.sendall(b"CONNECT 1024\n")
            assert connection.recv(100).startswith(b"OK ")
            assert_echoes_messages(connection)


def test_vm_leaves_no_sockets_in_its_folder(vms: VmFactory, tmp_path: Path) -> None:
    config = vms.config()
    share = ShareConfig(tag="t", directory=tmp_path)
    vm = vms.boot(replace(config, vsock=VsockConfig(socket=config.runtime_dir / "v.sock"), shares=(share,)))

    vm.send("poweroff")
    vm.wait_exit()

    left = {entry.name for entry in config.runtime_dir.iterdir()}
    assert left == {"exit.json", "vm.json", "vmm.log", "qmp.sock"}


@pytest.mark.parametrize("cache", ["auto", "none", "always"])
def test_share_is_read_and_written_by_both_sides(
    vms: VmFactory, tmp_path: Path, cache: str, share_programs: ProgramsConfig
) -> None:
    (tmp_path / "from-host").write_text("host")
    share = ShareConfig(tag="a,tag", directory=tmp_path, cache=ShareCache(cache))
    vm = vms.boot(with_programs(replace(vms.config(), shares=(share,)), share_programs))

    assert vm.ask("mount a,tag /mnt") == "ok"
    assert vm.ask("cat /mnt/from-host") == "host"
    assert vm.ask("store /mnt/from-guest guest words") == "ok"
    assert (tmp_path / "from-guest").read_text() == "guest words"


def test_mount_made_later_below_a_share_becomes_visible(
    share: Path, vms: VmFactory, tmp_path: Path, share_programs: ProgramsConfig
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("late")
    shares = (ShareConfig(tag="t", directory=share),)
    config = with_programs(replace(vms.config(), shares=shares), share_programs)
    vm = vms.boot(config, command=None if config.jail.enabled else SLAVE_NAMESPACE)
    assert vm.ask("mount t /mnt") == "ok"
    assert vm.ask("list /mnt/seen") == ""

    for point in ("seen", "unseen"):
        subprocess.run(["mount", "--bind", source, share / point], check=True)

    assert vm.ask("cat /mnt/unseen/file") == "late"
    # What the guest has looked at before is valid for a second (cache=auto).
    assert vm.ask("wait /mnt/seen/file late") == "ok"


def test_shares_come_and_go_below_a_running_vm(share: Path, vms: VmFactory, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_text("words")
    (tmp_path / "fixed").mkdir()
    shares = (
        ShareConfig(tag="t", cache=ShareCache.NONE),
        ShareConfig(tag="fixed", directory=tmp_path / "fixed"),
    )
    vm = vms.boot(replace(vms.config(), shares=shares, jail=JailConfig(folders=(share,))))
    assert vm.ask("mount t /mnt") == "ok"
    assert vm.ask("list /mnt") == ""
    point = share / "seen"
    with vm.qmp() as qmp:
        subprocess.run(["mount", "--bind", source, point], check=True)
        try:
            added = {"tag": "t", "name": "one", "directory": str(point)}
            assert qmp.execute("x-strato-add-share", added) == {}
            with pytest.raises(QmpCommandError, match=r"'one'.*exists"):
                qmp.execute("x-strato-add-share", added)
            assert qmp.execute("x-strato-add-share", {**added, "name": "two", "readonly": True}) == {}
            assert vm.ask("cat /mnt/one/folder/file") == "words"
            assert vm.ask("store /mnt/two/folder/file lost") == "Read-only file system"
            assert vm.ask("hold /mnt/one/folder/file") == "ok"

            for name in ("one", "two"):
                assert qmp.execute("x-strato-remove-share", {"tag": "t", "name": name}) == {}
            # What the guest holds open is revoked, and nothing of ours keeps the mount busy.
            subprocess.run(["umount", point], check=True)
        finally:
            subprocess.run(["umount", "--quiet", "--lazy", point], check=False)
        assert vm.ask("held") == "Bad file descriptor"
        assert vm.ask("cat /mnt/one/folder/file") in ("No such file or directory", "Stale file handle")
        with pytest.raises(QmpCommandError, match=r"'one'.*No such file"):
            qmp.execute("x-strato-remove-share", {"tag": "t", "name": "one"})
        with pytest.raises(QmpCommandError, match="'fixed' is the folder"):
            qmp.execute("x-strato-add-share", {**added, "tag": "fixed"})
        with pytest.raises(QmpCommandError, match="'none' not found"):
            qmp.execute("x-strato-add-share", {**added, "tag": "none"})


WRITES = 100


@pytest.mark.parametrize("writeback", [False, True])
def test_guest_keeps_back_what_it_writes_if_it_may(
    equipped_vms: MakeVms, tmp_path: Path, writeback: bool
) -> None:
    calls = ["open f0 file O_CREAT|O_WRONLY 0644", *["write f0 100 1"] * WRITES, "close f0"]
    vms = equipped_vms("script", calls=calls)
    (tmp_path / "shared").mkdir()
    share = ShareConfig(tag="t", directory=tmp_path / "shared", writeback=writeback)
    vm = vms.boot(replace(vms.config(), shares=(share,)))
    assert vm.ask("mount t /mnt") == "ok"

    assert results(vm, "calls", "/mnt") == ["0", *["100"] * WRITES, "0"]

    assert (tmp_path / "shared" / "file").stat().st_size == 100 * WRITES
    with vm.qmp() as qmp:
        (counters,) = [
            entry["counters"] for entry in qmp.execute("x-strato-stats")["devices"] if entry["kind"] == "fs"
        ]
    assert (counters["write_requests"] < WRITES // 4) == writeback


def test_locks_are_taken_on_the_hosts_files_outside_of_the_jail(
    equipped_vms: MakeVms, tmp_path: Path
) -> None:
    calls = ["open f0 file O_RDWR 0", "lock f0 write 0 5", "wait-lock f0 write 0 5", "lock f0 write 5 5"]
    vms = equipped_vms("script", calls=calls)
    (tmp_path / "shared").mkdir()
    share = ShareConfig(tag="t", directory=tmp_path / "shared", remote_locks=True)
    config = replace(vms.config(), shares=(share,))
    with (tmp_path / "shared" / "file").open("wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
        vm = vms.boot(replace(config, jail=JailConfig(enabled=False)))
        assert vm.ask("mount t /mnt") == "ok"
        assert results(vm, "calls", "/mnt") == ["0", "EAGAIN", "EOPNOTSUPP", "0"]

    jailed = vms.start(replace(config, runtime_dir=vms.directory()))
    assert "locks on the host's files while its threads are confined" in jailed.wait_exit().message


def test_read_only_share_refuses_writes(
    vms: VmFactory, tmp_path: Path, share_programs: ProgramsConfig
) -> None:
    (tmp_path / "file").write_text("kept")
    shares = (ShareConfig(tag="t", directory=tmp_path, readonly=True),)
    config = with_programs(replace(vms.config(), shares=shares), share_programs)
    command = ["unshare", "--pid", "--mount", "--mount-proc", "--fork", *DIRECT]
    vm = vms.boot(config, command=None if config.jail.enabled else command)

    assert vm.ask("mount t /mnt") == "ok"
    assert vm.ask("cat /mnt/file") == "kept"
    assert vm.ask("store /mnt/file lost") == "Read-only file system"


@reference_program
def test_read_only_share_by_virtiofsd_without_a_mount_namespace_is_refused(
    vms: VmFactory, tmp_path: Path
) -> None:
    shares = (ShareConfig(tag="t", directory=tmp_path, readonly=True),)
    programs = ProgramsConfig(virtiofsd=paths.virtiofsd())
    config = with_programs(replace(vms.config(), shares=shares), programs)

    assert "strato-launch" in vms.start(config).wait_exit().message


def test_drives_appear_in_order_with_size_serial_and_mode(vms: VmFactory) -> None:
    config = vms.config()
    first, second = config.runtime_dir / "a,first", config.runtime_dir / "second"
    first.write_bytes(b"first disk".ljust(1 << 20, b"\0"))
    second.write_bytes(bytes(2 << 20))
    drives = (
        DriveConfig(id="d0", path=first, readonly=True, serial="serial,0"),
        DriveConfig(id="d1", path=second),
    )
    vm = vms.boot(replace(config, drives=drives))

    assert vm.ask("cat /dev/vda").startswith("first disk")
    assert vm.ask("cat /sys/block/vda/serial") == "serial,0"
    assert (vm.ask("cat /sys/block/vda/ro"), vm.ask("cat /sys/block/vdb/ro")) == ("1", "0")
    assert vm.ask("cat /sys/block/vdb/size") == str((2 << 20) // 512)


def test_absent_drive_is_told_by_its_path(vms: VmFactory) -> None:
    drive = DriveConfig(id="d0", path=Path("/nonexistent/disk"))

    config = replace(vms.config(), drives=(drive,))
    assert "/nonexistent/disk" in vms.start(config, command=DIRECT).wait_exit().message


def wait_for_frame(packets: socket.socket, source: str) -> None:
    """Wait until the interface has carried a frame of that sender."""
    while packets.recv(2048)[6:12] != bytes.fromhex(source.replace(":", "")):
        pass


def test_tap_becomes_an_interface_whose_link_follows_qmp(vms: VmFactory) -> None:
    tap = open_tap(None, "vmtest0")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as packets:
        packets.settimeout(DEADLINE_S)
        packets.bind(("vmtest0", ETH_P_ALL))
        try:
            net = NetConfig(id="net0", tap_fd=tap, mac="02:53:54:52:00:07", mtu=1400, link_up=False)
            vm = vms.boot(replace(vms.config(), nets=(net,)))
        finally:
            os.close(tap)
        assert vm.ask("cat /sys/class/net/eth0/address") == "02:53:54:52:00:07"
        assert vm.ask("cat /sys/class/net/eth0/mtu") == "1400"
        assert vm.ask("up eth0") == "ok"
        assert vm.ask("cat /sys/class/net/eth0/carrier") == "0"

        with vm.qmp() as qmp:
            qmp.execute("x-strato-set-link", {"id": "net0", "up": True})
        assert vm.ask("wait /sys/class/net/eth0/carrier 1") == "ok"
        # What the guest's IPv6 says when its interface comes up.
        wait_for_frame(packets, "02:53:54:52:00:07")

    with vm.qmp() as qmp:
        limit = {"id": "net0", "direction": "transmit", "operations": 1000, "bandwidth": 1 << 20}
        qmp.execute("x-strato-set-net-limit", limit)
        assert "tx_packets" in qmp.execute("x-strato-stats")["devices"][-1]["counters"]

    vm.send("poweroff")
    vm.wait_exit()
    assert not Path("/sys/class/net/vmtest0").exists()


def test_guest_has_a_hardware_random_number_generator_unless_told_not_to(vms: VmFactory) -> None:
    assert vms.boot().ask("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    without = vms.boot(replace(vms.config(), rng=RngConfig(enabled=False)))
    assert not without.ask("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")


def test_counters_of_the_devices_are_told(vms: VmFactory) -> None:
    config = vms.config()
    vm = vms.boot(replace(config, vsock=VsockConfig(socket=config.runtime_dir / "v.sock")))
    assert vm.ask("vsock-echo 1024") == "ok"
    with connect_to_guest(config.runtime_dir / "v.sock", 1024) as connection:
        assert exchange(connection, b"12345") == b"12345"

    with vm.qmp() as qmp:
        devices = qmp.execute("x-strato-stats")["devices"]

    counters = {entry["device"]: entry["counters"] for entry in devices}
    assert (counters["vsock"]["tx_bytes"], counters["vsock"]["rx_bytes"]) == (5, 5)
    assert counters["rng"]["requests"] >= 1
