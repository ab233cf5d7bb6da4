"""A private containerd of a given release: own root, state, sockets and configuration, nothing shared with
the machine's own.

Called by the tests and by `make demo`; standard library only. A `Containerd` object owns its daemon process
and its directory: `start()` returns when the daemon answers, `stop()` ends it, `close()` also removes
everything below the directory and is what the context manager calls. Containers must be gone before
`close()`; what is left is unmounted and reported.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

# Plugins that need kernel modules, write outside our directories, or are not used by `ctr`.
_DISABLED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
)
_SOCKET_PATH_LIMIT = 100


class ContainerdError(Exception):
    """The daemon did not start, died, or could not be ended."""


@dataclass(frozen=True)
class ContainerdSettings:
    """What the daemon is given. `bin_dir` holds `containerd` and `ctr`; `path` comes before it on the
    daemon's PATH.
    """

    bin_dir: Path
    directory: Path
    state_dir: Path | None = None
    path: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "debug"
    start_timeout_s: float = 60.0


class Containerd:
    """One daemon. Not thread-safe; `ctr_command` may be used from any thread."""

    def __init__(self, settings: ContainerdSettings) -> None:
        self.settings = settings
        self.address = settings.directory / "c.sock"
        self.log_path = settings.directory / "containerd.log"
        self.state_dir = settings.state_dir or settings.directory / "state"
        self._process: subprocess.Popen[bytes] | None = None
        if len(os.fsencode(f"{self.address}.ttrpc")) > _SOCKET_PATH_LIMIT:
            raise ContainerdError(f"Socket path {self.address}.ttrpc is too long; use a shorter directory")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Pid of the running daemon. Raises ContainerdError when there is none."""
        if self._process is None:
            raise ContainerdError("containerd is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the daemon was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the daemon and returns when `ctr version` is answered and the events socket accepts.

        Raises ContainerdError with the end of the log when the daemon ends or the time is up.
        """
        if self.running:
            raise ContainerdError(f"containerd is running already with pid {self.pid}")
        settings = self.settings
        settings.directory.mkdir(parents=True, exist_ok=True)
        config = settings.directory / "containerd.toml"
        config.write_text(self._config(), encoding="utf-8")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [settings.bin_dir / "containerd", "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=settings.directory,
                start_new_session=True,
            )
        self._wait_ready(time.monotonic() + settings.start_timeout_s)

    def stop(self, *, force: bool = False, timeout_s: float = 20.0) -> None:
        """Ends the daemon by SIGTERM (`force`: SIGKILL) and waits. Its shims live on, as containerd
        wants it.
        """
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if force else signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise ContainerdError(f"containerd {process.pid} did not end within {timeout_s} s") from error
        finally:
            self._process = None

    def close(self) -> None:
        """Stops the daemon and removes its directory. Raises ContainerdError when mounts had been left below
        it.
        """
        try:
            self.stop()
        finally:
            left = [*_mounts_below(self.settings.directory), *_mounts_below(self.state_dir)]
            left = list(dict.fromkeys(left))
            for mount_point in reversed(left):
                subprocess.run(["umount", "--lazy", mount_point], check=False, capture_output=True)
            for directory in (self.state_dir, self.settings.directory):
                shutil.rmtree(directory, ignore_errors=True)
        if left:
            raise ContainerdError(f"Mounts had been left below {self.settings.directory}: {', '.join(left)}")

    def ctr_command(self, *arguments: str | Path, namespace: str = "default") -> list[str]:
        """The command line of this release's `ctr` against this daemon."""
        fixed = ("--address", str(self.address), "--namespace", namespace)
        return [str(self.settings.bin_dir / "ctr"), *fixed, *(str(word) for word in arguments)]

    def environment(self) -> dict[str, str]:
        """The environment of the daemon; a `ctr` of ours wants the same PATH."""
        path = [os.fspath(entry) for entry in (*self.settings.path, self.settings.bin_dir)]
        keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path.append(os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
        return {**keep, "PATH": ":".join(path), **self.settings.env}

    def log_tail(self, lines: int = 80) -> str:
        """The end of the daemon's log, for error texts."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _config(self) -> str:
        # Configuration version 2 is read by every release from 1.6 on.
        directory = self.settings.directory
        disabled = ", ".join(f'"{name}"' for name in _DISABLED)
        return "\n".join(
            (
                "version = 2",
                f'root = "{directory / "root"}"',
                f'state = "{self.state_dir}"',
                f"disabled_plugins = [{disabled}]",
                "[grpc]",
                f'address = "{self.address}"',
                "[ttrpc]",
                f'address = "{self.address}.ttrpc"',
                "[debug]",
                f'level = "{self.settings.log_level}"',
                "",
            )
        )

    def _wait_ready(self, deadline: float) -> None:
        last = "nothing answered"
        while time.monotonic() < deadline:
            if not self.running:
                status = self._process.returncode if self._process else None
                self._process = None
                raise ContainerdError(f"containerd ended with {status} at its start:\n{self.log_tail()}")
            if _accepts(self.address) and _accepts(Path(f"{self.address}.ttrpc")):
                command = self.ctr_command("version")
                left = max(1.0, deadline - time.monotonic())
                answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=left)
                if answer.returncode == 0:
                    return
                last = answer.stderr.strip()
            time.sleep(0.02)  # a socket that is not there yet offers nothing to wait on
        self.stop(force=True)
        raise ContainerdError(
            f"containerd gave no answer within {self.settings.start_timeout_s} s ({last}):\n{self.log_tail()}"
        )


def scratch_directory(prefix: str = "strato-") -> Path:
    """A fresh directory with a short path on a file system that overlayfs can use as its upper layer.

    The caller removes it. Raises ContainerdError when no candidate works.
    """
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/run"), Path("/dev/shm")]
    for parent in candidates:
        with contextlib.suppress(OSError):
            directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if overlay_works(directory):
                return directory
            shutil.rmtree(directory, ignore_errors=True)
    names = ", ".join(str(path) for path in candidates)
    raise ContainerdError(f"None of {names} can hold overlayfs; mount a tmpfs on one of them")


def overlay_works(directory: Path) -> bool:
    """Whether a directory's file system can be upper and lower layer of an overlay mount (tried, then
    undone).
    """
    probe = directory / "overlay-probe"
    names = {name: probe / name for name in ("lower", "upper", "work", "merged")}
    for path in names.values():
        path.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={names['lower']},upperdir={names['upper']},workdir={names['work']}"
    command: Sequence[str | Path] = ["mount", "-t", "overlay", "overlay", "-o", options, names["merged"]]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if mounted:
        subprocess.run(["umount", names["merged"]], check=True, capture_output=True)
    shutil.rmtree(probe, ignore_errors=True)
    return mounted


def _accepts(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def _mounts_below(directory: Path) -> list[str]:
    prefix = f"{directory}/"
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split(" ")[4] for line in lines]
    return [point for point in points if point.startswith(prefix)]
