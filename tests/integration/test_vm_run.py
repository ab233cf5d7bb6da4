"""`strato vm run`: a plain VM in the terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.framework.engine import wanted_engine
from tests.framework.vm import DEADLINE_S, VmFailureError, processes_naming
from vmm import paths
from vmm.exit_report import ExitCode

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "import sys; from vmm.cli import main; sys.exit(main())", "vm", "run"]


@pytest.fixture
def vm_file(tmp_path: Path, guest: Path) -> Path:
    """A configuration file for the smallest VM."""
    file = tmp_path / "plain.toml"
    file.write_text(
        f'engine = "{wanted_engine()}"\n[boot]\nkernel = "{paths.kernel().resolve()}"\ninitrd = "{guest}"\n'
    )
    return file


def read_until(fd: int, text: bytes) -> bytes:
    output = b""
    deadline = time.monotonic() + DEADLINE_S
    while text not in output:
        if not select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
            raise VmFailureError(f"Terminal did not show {text!r} but {output!r}")
        output += os.read(fd, 4096)
    return output


def test_piped_commands_run_and_the_status_is_the_vms(vm_file: Path, guest: Path) -> None:
    result = subprocess.run(
        [*COMMAND, vm_file], input=b"echo piped\npoweroff\n", capture_output=True, timeout=DEADLINE_S
    )

    assert result.returncode == 0
    assert b"=> piped" in result.stdout
    assert processes_naming(str(guest)) == []


def test_commands_from_a_regular_file_run(vm_file: Path, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.write_text("echo 1\n" * 1000 + "poweroff\n")
    with commands.open("rb") as stream:
        result = subprocess.run([*COMMAND, vm_file], stdin=stream, capture_output=True, timeout=DEADLINE_S)

    assert result.returncode == 0
    assert result.stdout.count(b"=> 1") == 1000


def test_panic_is_the_exit_status(vm_file: Path) -> None:
    result = subprocess.run([*COMMAND, vm_file], input=b"panic\n", capture_output=True, timeout=DEADLINE_S)

    assert result.returncode == ExitCode.PANIC
    assert b"Kernel panic" in result.stdout


def test_terminal_is_raw_until_the_escape_ends_the_vm(vm_file: Path, guest: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, vm_file], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        read_until(ours, b"=> ready")
        os.write(ours, b"echo \x03typed\n")  # in raw mode Ctrl-C is the guest's
        read_until(ours, b"=> ")
        os.write(ours, b"\x01x")

        assert process.wait(DEADLINE_S) == ExitCode.SIGNAL
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert processes_naming(str(guest)) == []


def test_absent_kernel_is_told_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text('[boot]\nkernel = "/nonexistent/vmlinux"\n')

    result = subprocess.run([*COMMAND, file], capture_output=True, timeout=DEADLINE_S)

    assert result.returncode == ExitCode.CONFIG
    assert b"/nonexistent/vmlinux" in result.stderr
    assert b"Traceback" not in result.stderr
