"""The objects of vmm.devices that no engine uses yet, on the real library."""

import os
from pathlib import Path

import pytest

from vmm.devices import (
    BalloonDevice,
    BlockDevice,
    ConsoleDevice,
    ConsolePort,
    EventRing,
    VsockDevice,
    balloon,
    block,
    console,
    fs,
    rng,
    vsock,
)
from vmm.devices.device import STATS

pytestmark = pytest.mark.unit


def test_console_with_ports_is_made_resized_and_lets_go_of_its_descriptors() -> None:
    ours, theirs = os.openpty()
    ports = [ConsolePort(name="first", input_fd=theirs, output_fd=theirs), ConsolePort(name="silent")]
    with EventRing() as events, console(events, 1, "console0", ports=ports) as device:
        assert device.metrics()["tx_bytes"] == 0
        device.resize(132, 50)
    os.close(theirs)
    # Nobody has the other end any more.
    with pytest.raises(OSError, match="Input/output error"):
        os.read(ours, 1)
    os.close(ours)


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ([], "1 to 31 ports, not 0"),
        ([ConsolePort()] * 32, "1 to 31 ports, not 32"),
        ([ConsolePort(name="n" * 65)], "more than 64 bytes"),
        ([ConsolePort(input_fd=2**31 - 1)], "Cannot duplicate a descriptor"),
    ],
)
def test_console_that_cannot_be_is_refused_with_the_reason(ports: list[ConsolePort], words: str) -> None:
    with EventRing() as events, pytest.raises(OSError, match=words):
        console(events, 1, "console0", ports=ports)


def test_console_port_name_with_a_nul_byte_is_refused() -> None:
    with EventRing() as events, pytest.raises(ValueError, match="NUL"):
        console(events, 1, "console0", ports=[ConsolePort(name="a\0b")])


def test_only_a_console_is_resized() -> None:
    with EventRing() as events:
        device = rng(events, 1, "rng0", rate=1, burst=1)
        disguised = ConsoleDevice(device._open())
        with pytest.raises(OSError, match="no console"):
            disguised.resize(1, 1)
        disguised.abandon()
        device.close()


def test_balloon_has_its_target_and_knows_nothing_of_a_guest_that_is_not_there() -> None:
    with EventRing() as events, balloon(events, 1, "balloon0", stats_interval_s=5) as device:
        device.set_target((64 << 20) + 1)
        info = device.info()
        assert (info.target_bytes, info.actual_bytes, info.updated_s, info.stats) == (64 << 20, 0, 0, {})
        assert (info.reported_bytes, info.discarded_bytes) == (0, 0)
        assert device.metrics()["inflated_pages"] == 0
        with pytest.raises(OSError, match=r"cannot have 17592186044416 bytes"):
            device.set_target(1 << 44)
        with pytest.raises(OverflowError):
            device.set_target(-1)


def test_statistics_of_a_guest_are_counters_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"swap-in": 7, "free-memory": 3 << 20, "oom-kill": 0}
    stats = [told.get(name, 2**64 - 1) for name in STATS]
    monkeypatch.setattr("vmm.devices.calls.balloon_info", lambda _: ((0, 0, 0, 0), 1_700_000_000, stats))

    with EventRing() as events:
        with balloon(events, 1, "balloon0", stats_interval_s=5) as asked:
            counters = asked.metrics()
        with balloon(events, 2, "balloon1") as unasked:
            plain = unasked.metrics()

    assert {name: value for name, value in counters.items() if name not in plain} == {
        "stats_updated_s": 1_700_000_000,
        "guest_swap_in": 7,
        "guest_free_memory": 3 << 20,
        "guest_oom_kill": 0,
    }


def test_only_a_balloon_has_a_target() -> None:
    with EventRing() as events:
        device = rng(events, 1, "rng0", rate=1, burst=1)
        disguised = BalloonDevice(device._open())
        with pytest.raises(OSError, match="no balloon"):
            disguised.set_target(0)
        with pytest.raises(OSError, match="no balloon"):
            disguised.info()
        disguised.abandon()
        device.close()


def test_disk_grows_with_its_file_and_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    with EventRing() as events, path.open("r+b") as file, block(events, 1, "d0", fd=file.fileno()) as device:
        assert device.grow(1 << 20) == 1 << 20 == path.stat().st_size
        os.truncate(path, 2 << 20)
        assert device.resize() == device.grow(2 << 20) == 2 << 20
        with pytest.raises(OSError, match="has 2097152 bytes, and disks in use do not shrink"):
            device.grow(1 << 20)
        with pytest.raises(OverflowError):
            device.grow(-1)


def test_only_a_disk_grows_and_only_vsock_has_a_transport(tmp_path: Path) -> None:
    with EventRing() as events, rng(events, 1, "rng0", rate=1, burst=1) as device:
        disk, socket = BlockDevice(device.handle()), VsockDevice(device.handle())
        with pytest.raises(OSError, match="no disk"):
            disk.grow(512)
        with pytest.raises(OSError, match="no vsock"):
            socket.reset_transport()
        disk.abandon()
        socket.abandon()
        with vsock(events, 2, "vsock0", guest_cid=3, path=tmp_path / "v") as other:
            other.reset_transport()


def test_share_is_made_with_what_it_may_have(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with EventRing() as events:
        options = (events, 1, "fs0")
        with fs(*options, directory_fd=folder, fs_tag="t", writeback=True, remote_locks=True) as device:
            assert device.metrics()["init_requests"] == 0
    os.close(folder)
