"""strato-vmm started as the shim starts it: through strato-launch, in namespaces and a root of its own."""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from typing import BinaryIO

from vmm.config import VmConfig
from vmm.decoding import encode
from vmm.jail import view
from vmm.paths import launcher
from vmm.sys import launch

from .recording import Recorder


class LaunchedVmm:
    """The process, with as much of `subprocess.Popen` as the tests use. It is a child of this process."""

    def __init__(
        self, config: VmConfig, arguments: Sequence[str], *, stderr: BinaryIO, pass_fds: Sequence[int]
    ) -> None:
        root = config.runtime_dir.parent / f"{config.runtime_dir.name}.jail"
        root.mkdir(exist_ok=True)
        options = ["--new", "pid,mount,ipc,uts", "--mount-proc", "--die-with-parent"]
        options += view.launch_options(encode(config), str(root))
        stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
        stdout_read, stdout_write = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = launch(
                str(launcher()),
                [*options, "--", *view.command(), *arguments],
                pass_fds=pass_fds,
                stdio=(stdin_read, stdout_write, stderr.fileno()),
            ).pid
        finally:
            os.close(stdin_read)
            os.close(stdout_write)
        self._recorder = Recorder(self.pid)
        self._pidfd = os.pidfd_open(self.pid)
        self.stdin: BinaryIO | None = os.fdopen(stdin_write, "wb")
        self.stdout: BinaryIO | None = os.fdopen(stdout_read, "rb")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
            self._recorder.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        if self.poll() is None and not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"strato-vmm {self.pid}", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def reaped(self, returncode: int) -> None:
        """Take note of an end that somebody else has waited for: a tracer."""
        self.returncode = returncode
        os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)
