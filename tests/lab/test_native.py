"""The bare-metal guests of the native crates on the test host's KVM, which runs kernel mode as hardware does.

They also run wherever /dev/kvm opens (tests/native), but that may be a KVM that emulates every instruction.
"""

import json
import os
import subprocess

import pytest

from tests.framework.runtime import CHECKOUT
from tools.cache import Cache
from tools.native import rustc_version

from .host import run_command
from .settings import Command, LabSettings, inherited_environment

pytestmark = pytest.mark.lab

WORKSPACE = "vmm/native"


def program(*selection: str) -> str:
    """The path of one test program of the native crates, built where tests/native does."""
    inputs = {"workspace": WORKSPACE, "rustc": rustc_version()}
    with Cache().workspace("test-vmm-native", inputs) as target:
        command = ["cargo", "test", "--locked", "--no-run", "--message-format=json", *selection]
        env = {**os.environ, "CARGO_TARGET_DIR": str(target)}
        done = subprocess.run(
            command, cwd=CHECKOUT / WORKSPACE, env=env, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    tests = [message for message in messages if message.get("profile", {}).get("test")]
    (path,) = {message["executable"] for message in tests if message.get("executable")}
    return str(path)


class Recorder:
    """Keeps what a command printed."""

    def __init__(self) -> None:
        self.printed = b""

    def output(self, data: bytes) -> None:
        """See `Listener`."""
        self.printed += data

    def console(self, line: str) -> None:
        """See `Listener`."""

    def progress(self) -> None:
        """See `Listener`."""


def run(*words: str) -> str:
    """What a test program prints in a test host of its own; it has to pass."""
    recorder = Recorder()
    environment = {**inherited_environment(os.environ), "RUST_TEST_THREADS": "2"}
    command = Command([*words, "--nocapture"], directory=CHECKOUT, environment=environment)
    outcome = run_command(command, LabSettings(), recorder)
    text = recorder.printed.decode(errors="replace")
    assert outcome.status == 0, text
    assert "test result: ok" in text
    return text


def test_machine_passes_its_own_tests_on_this_kvm() -> None:
    text = run(program("-p", "strato-machine", "--lib"))

    assert "/dev/kvm cannot be opened" not in text
    assert "no /dev/kvm here" not in text


@pytest.mark.full
def test_each_rule_of_the_vcpus_filter_is_needed_on_this_kvm() -> None:
    text = run(program("-p", "strato-proof", "--test", "confinement"), "--ignored")

    assert "left out" not in text
