"""A guest that lies from its first instruction loses its own VM and nothing else; a guest that breaks says
why; and garbage does not break it.
"""

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest

from shim.protos.generated import ttrpc_pb2
from tests.framework import host
from tests.framework.command import eventually
from tests.framework.daemons import TestDaemon
from tests.framework.guest_programs import compile_static, initramfs
from tests.framework.injection import Thread, ThreadKilledError

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]

CREATE_TIMEOUT_S = 15
CONTROL_PORT, STREAM_PORT = 1024, 1025  # shim/agent_proto/agent.proto
SYS_EXECVE = 59  # asm/unistd_64.h
SHIM_MEMORY_LIMIT_KIB = 200 * 1024


def test_guest_that_sends_garbage_on_every_port_fails_its_own_create_only(
    daemon: TestDaemon, tmp_path: Path
) -> None:
    ctr = daemon.ctr
    neighbour = ctr.run_detached("sleep", "1000")
    image = tmp_path / "hostile.img"
    image.write_bytes(initramfs(compile_static("hostile_init", tmp_path)))
    daemon.write_config(vm={"image": str(image)}, shim={"create_timeout_s": CREATE_TIMEOUT_S})
    result = ctr.run("true", timeout_s=CREATE_TIMEOUT_S + 30)
    assert result.status != 0
    assert result.error_text
    assert ctr.exec(neighbour, "echo", "untouched").check().text == "untouched"
    assert _largest_shim_kib() < SHIM_MEMORY_LIMIT_KIB


def test_guest_that_does_nothing_is_given_up_after_the_timeout(daemon: TestDaemon, tmp_path: Path) -> None:
    idle = tmp_path / "idle.img"
    idle.write_bytes(initramfs(compile_static("idle_init", tmp_path)))
    daemon.write_config(vm={"image": str(idle)}, shim={"create_timeout_s": 5})
    result = daemon.ctr.run("true", timeout_s=30)
    assert result.status != 0
    assert "idle init is here" in result.error_text


def test_guest_that_panics_at_boot_is_reported_with_its_console(daemon: TestDaemon, tmp_path: Path) -> None:
    image = tmp_path / "empty.img"
    program = tmp_path / "init"
    program.write_bytes(b"not a program")
    image.write_bytes(initramfs(program))
    daemon.write_config(vm={"image": str(image)})
    result = daemon.ctr.run("true", timeout_s=40)
    assert result.status != 0
    assert "panic" in result.error_text.lower()


def test_guest_that_panics_later_ends_its_containers_and_says_why(daemon: TestDaemon) -> None:
    # The kernel is told to take a lack of memory for the end of everything.
    daemon.write_config(vm={"kernel_params": "sysctl.vm.panic_on_oom=2"})
    ctr = daemon.ctr
    other = ctr.run_detached("sleep", "1000")
    command = ("dd", "if=/dev/zero", "of=/dev/null", "bs=120M", "count=1")
    result = ctr.run(*command, options=("--memory-limit", str(64 << 20)), timeout_s=40)
    assert result.status == 137
    log = daemon.containerd.log_path.read_text(errors="replace")
    assert "VM ended: guest-panic: " in log
    assert "panic_on_oom" in log
    assert ctr.exec(other, "echo", "untouched").check().text == "untouched"


def test_strato_vmm_that_makes_a_forbidden_call_is_ended_and_says_so(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    name = ctr.run_detached("sleep", "1000")
    (path,) = daemon.state_root.glob("*/state.json")
    other = ctr.run_detached("sleep", "1000")
    with pytest.raises(ThreadKilledError), Thread(json.loads(path.read_text())["vmm"]["pid"]) as taken_over:
        taken_over.call(SYS_EXECVE, taken_over.text("/bin/sh"), 0, 0)
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "the exit is told")
    log = daemon.containerd.log_path.read_text(errors="replace")
    assert "VM ended: strato-vmm was killed by SIGSYS: it made a forbidden system call" in log
    assert ctr.exec(other, "echo", "untouched").check().text == "untouched"


def test_garbage_on_the_agents_ports_harms_nobody(daemon: TestDaemon) -> None:
    ctr = daemon.ctr
    name = ctr.run_detached("sleep", "1000")
    (path,) = daemon.state_root.glob("*/vmm/vsock.sock")
    random = Random(1)
    with ExitStack() as held:
        for port in (CONTROL_PORT, STREAM_PORT):
            for data in garbage(random):
                with _connect(path, port) as connection:
                    send_until_closed(connection, data)
            # Those that say nothing, or the beginning of something, and stay.
            for data in (b"", b"\0\0\0\x10\0\0\0\1\1", b"\0\0\0\x20half an id"):
                held.enter_context(_connect(path, port)).sendall(data)
        for number in range(10):
            assert ctr.exec(name, "echo", f"alive {number}").check().text == f"alive {number}"
    ctr.kill(name).check()
    eventually(lambda: ctr.tasks()[name].status == "STOPPED", "the exit is told")


def garbage(random: Random) -> Iterator[bytes]:
    """What neither port may be asked: noise, headers that lie, requests that are none, ids of nobody."""
    for size in (1, 9, 10, 11, 64, 4096, 100_000):
        yield random.randbytes(size)
    header = struct.Struct(">IIBB")  # ttrpc: length, stream, type, flags
    for length, stream, kind, flags in (
        (0, 1, 1, 0),
        (0, 0, 1, 0),
        (0, 2, 1, 0),
        (4 << 20, 1, 1, 0),
        (0xFFFFFFFF, 1, 1, 0),
        (20, 1, 1, 0xFF),
        (20, 1, 2, 0),
        (20, 1, 3, 0),
        (20, 1, 9, 0),
    ):
        yield header.pack(length, stream, kind, flags) + random.randbytes(min(length, 1 << 20))
    request = ttrpc_pb2.Request(
        service="strato.agent.v1.Agent", method="CreateContainer", payload=b"\xff" * 50
    )
    for method in ("CreateContainer", "StartContainer", "GetEvents", "NoSuchMethod", ""):
        request.method = method
        data = request.SerializeToString()
        yield header.pack(len(data), 1, 1, 0) + data
    for name in (b"", b"/", b"no/such/stdout", b"../../etc//stdin", b"\xff\xfe", b"x" * 4096, b"x" * 5000):
        yield struct.pack(">I", len(name)) + name


def send_until_closed(connection: socket.socket, data: bytes) -> None:
    """Sends it all, unless the other side has had enough."""
    with suppress(ConnectionError, TimeoutError):
        connection.sendall(data)


def _connect(path: Path, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    connection.sendall(f"CONNECT {port}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):
        received = connection.recv(1)
        assert received, f"Nobody listens on port {port} any more"
        answer += received
    assert answer.startswith(b"OK ")
    return connection


def _largest_shim_kib() -> int:
    sizes = [0]
    for pid, entry in host.processes().items():
        if "containerd-shim-strato-v2" in entry.command:
            text = (host.PROC / str(pid) / "status").read_text()
            sizes += [int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")]
    return max(sizes)
