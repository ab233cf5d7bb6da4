"""A shim without containerd: the test makes the bundle, runs the verbs and speaks the task API itself.

A `ShimProcess` owns one group's shim: `start` runs the verb as containerd 1.6 does (flags, environment, empty
stdin) and connects; leaving the context runs `delete` and thereby ends whatever the test has left.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim.protos.generated import bootstrap_pb2, task_pb2

from .daemons import DIRECT_NAMESPACE as NAMESPACE
from .daemons import TestDaemon
from .runtime import STRATO
from .ttrpc import EventSink, RpcError, TtrpcClient

# Both versions have the same messages; the answer of `start` says which one the shim serves.
TASK_SERVICES = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}


@dataclass(frozen=True)
class Verb:
    """What a run of the shim's binary gave."""

    status: int
    stdout: bytes
    stderr: bytes


def binary_of(daemon: TestDaemon) -> str:
    """Path of the runtime's shim, found as the daemon finds it."""
    words = daemon.options.runtime.name.split(".")
    name = f"containerd-shim-{words[-2]}-{words[-1]}"
    found = shutil.which(name, path=daemon.containerd.environment()["PATH"])
    if found is None:
        raise FileNotFoundError(f"{name} is not on the daemon's PATH; run `make build`")
    return found


def parse_answer(answer: bytes) -> tuple[int, str, str]:
    """(version, address, protocol) from any of the three forms of a start answer."""
    if answer.startswith(b"{"):
        parsed = json.loads(answer)
        return parsed["version"], parsed["address"], parsed["protocol"]
    if answer.startswith((b"unix://", b"/")):
        return 2, answer.decode(), "ttrpc"
    result = bootstrap_pb2.BootstrapResult.FromString(answer)
    return result.version, result.address, result.protocol


class ShimProcess:
    """The shim of one container group, driven directly."""

    def __init__(self, daemon: TestDaemon, container_id: str, spec: dict[str, Any], directory: Path) -> None:
        self.daemon = daemon
        self.container_id = container_id
        self.bundle = directory / "bundles" / container_id
        (self.bundle / "rootfs").mkdir(parents=True)
        (self.bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        # As containerd has it: a fifo that somebody holds open for reading.
        os.mkfifo(self.bundle / "log")
        self._log = os.open(self.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        self._address = daemon.direct_address
        self.events = EventSink(Path(f"{self._address}.ttrpc"))
        self._binary = binary_of(daemon)
        self._client: TtrpcClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._client is not None:
                self._end_gently()
                self._client.close()
            self.verb("delete")
        finally:
            self.events.__exit__(None, None, None)
            self.close_log()
            shutil.rmtree(self.bundle)

    def verb(self, name: str, *, stdin: bytes = b"", flags: Sequence[str] = ()) -> Verb:
        """Runs one verb of the shim's binary in the bundle."""
        fixed = ["-namespace", NAMESPACE, "-address", str(self._address), "-publish-binary", "/bin/false"]
        fixed += ["-id", self.container_id]
        if name == "delete":
            fixed += ["-bundle", str(self.bundle)]
        env = self.daemon.containerd.environment() | {
            "TTRPC_ADDRESS": f"{self._address}.ttrpc",
            "GRPC_ADDRESS": str(self._address),
            "NAMESPACE": NAMESPACE,
        }
        done = subprocess.run(
            [self._binary, *fixed, *flags, name],
            input=stdin,
            capture_output=True,
            cwd=self.bundle,
            env=env,
            timeout=40,
            check=False,
        )
        return Verb(done.returncode, done.stdout, done.stderr)

    def start(self, *, stdin: bytes = b"", flags: Sequence[str] = ()) -> TtrpcClient:
        """Runs `start` and connects. Raises AssertionError with the shim's words when it fails."""
        answer = self.verb("start", stdin=stdin, flags=flags)
        assert answer.status == 0, (answer.stdout + answer.stderr).decode(errors="replace")
        self._client = self.connect(answer.stdout)
        return self._client

    def connect(self, answer: bytes) -> TtrpcClient:
        """A further connection to the shim that gave this answer to `start`."""
        version, address, _ = parse_answer(answer)
        return TtrpcClient(address.removeprefix("unix://"), TASK_SERVICES[version], NAMESPACE)

    def _end_gently(self) -> None:
        # What the daemon does, each step only if the shim still can.
        for step in (lambda: self.kill(everything=True), self.wait, self.delete, self.shutdown):
            with contextlib.suppress(RpcError, OSError):
                step()

    @property
    def client(self) -> TtrpcClient:
        """The connection that `start` made."""
        assert self._client is not None, "start was not called"
        return self._client

    def create(self, *, stdin: str = "", stdout: str = "", stderr: str = "") -> task_pb2.CreateTaskResponse:
        """Create with the root file system of the spec and the given streams."""
        request = task_pb2.CreateTaskRequest(
            id=self.container_id,
            bundle=os.fspath(self.bundle),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        return self.client.call("Create", request, task_pb2.CreateTaskResponse, timeout_s=60)

    def start_task(self, exec_id: str = "") -> int:
        """Start of init or an exec; its pid."""
        request = task_pb2.StartRequest(id=self.container_id, exec_id=exec_id)
        return self.client.call("Start", request, task_pb2.StartResponse).pid

    def exec(self, exec_id: str, arguments: Sequence[str]) -> None:
        """Registers an exec process without streams."""
        process = {"args": list(arguments), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        spec = AnyMessage(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
            value=json.dumps(process).encode(),
        )
        request = task_pb2.ExecProcessRequest(id=self.container_id, exec_id=exec_id, spec=spec)
        self.client.call("Exec", request, Empty)

    def state(self, exec_id: str = "") -> task_pb2.StateResponse:
        """State of init or an exec."""
        request = task_pb2.StateRequest(id=self.container_id, exec_id=exec_id)
        return self.client.call("State", request, task_pb2.StateResponse)

    def wait(self, exec_id: str = "") -> task_pb2.WaitResponse:
        """Waits for the end of init or an exec."""
        request = task_pb2.WaitRequest(id=self.container_id, exec_id=exec_id)
        return self.client.call("Wait", request, task_pb2.WaitResponse)

    def kill(self, signal: int = 9, exec_id: str = "", *, everything: bool = False) -> None:
        """Sends a signal."""
        request = task_pb2.KillRequest(id=self.container_id, exec_id=exec_id, signal=signal, all=everything)
        self.client.call("Kill", request, Empty)

    def delete(self, exec_id: str = "") -> task_pb2.DeleteResponse:
        """Deletes an ended process."""
        request = task_pb2.DeleteRequest(id=self.container_id, exec_id=exec_id)
        return self.client.call("Delete", request, task_pb2.DeleteResponse)

    def connect_info(self) -> task_pb2.ConnectResponse:
        """Connect: pids of shim and task."""
        request = task_pb2.ConnectRequest(id=self.container_id)
        return self.client.call("Connect", request, task_pb2.ConnectResponse)

    def shutdown(self) -> None:
        """Shutdown as the daemon sends it; a shim that ends may close before it answers."""
        request = task_pb2.ShutdownRequest(id=self.container_id)
        try:
            self.client.call("Shutdown", request, Empty, timeout_s=10)
        except ConnectionError:
            return

    def log(self) -> str:
        """What the shim has written to the bundle's log fifo so far."""
        try:
            return os.read(self._log, 1 << 20).decode(errors="replace")
        except BlockingIOError:
            return ""

    def close_log(self) -> None:
        """Lets go of the bundle's log fifo, so that nobody reads it any more."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    @property
    def is_strato(self) -> bool:
        """Whether the shim is ours."""
        return self.daemon.options.runtime.name == STRATO
