"""A guest that lies from its first instruction loses its own VM and nothing else."""

from pathlib import Path

import pytest

from tests.framework import host
from tests.framework.ctr import Ctr
from tests.framework.daemons import TestDaemon
from tests.framework.guest_programs import compile_static, initramfs

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]

CREATE_TIMEOUT_S = 15
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


def test_container_that_powers_the_guest_off_ends_with_137(ctr: Ctr, tmp_path: Path) -> None:
    # With every capability and the host's pid namespace of the guest, a container may end its own VM.
    result = ctr.run("sh", "-c", "echo b > /proc/sysrq-trigger; sleep 1000", options=("--privileged",))
    assert result.status in (1, 137)


def _largest_shim_kib() -> int:
    sizes = [0]
    for pid, entry in host.processes().items():
        if "containerd-shim-strato-v2" in entry.command:
            text = (host.PROC / str(pid) / "status").read_text()
            sizes += [int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")]
    return max(sizes)
