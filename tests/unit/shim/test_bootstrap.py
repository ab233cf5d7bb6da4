"""`start` as containerd calls it: real processes of a throw-away launcher, one per form of the call.

The launcher runs the real shim for every verb but `run`: there it writes down what the daemon would have
got and accepts one connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.protos.generated import bootstrap_pb2, runtimeoptions_pb2, types_pb2

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[3]
DEADLINE_S = 30

LAUNCHER = """#!{python} -IS
import sys
sys.path[:0] = {path!r}
if sys.argv[-1] == "run":
    import json, os, signal, socket
    signal.alarm({deadline})
    listener = socket.socket(fileno=3)
    with open("daemon.tmp", "w") as file:
        json.dump({{
            "argv": sys.argv[1:], "stdin": os.read(4, 1 << 20).hex(), "cwd": os.getcwd(),
            "session": os.getsid(0) == os.getpid(), "pid": os.getpid(), "address": listener.getsockname(),
            "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
            "output": [os.readlink(f"/proc/self/fd/{{fd}}") for fd in (1, 2)],
        }}, file)
    os.rename("daemon.tmp", "daemon.json")
    while True:
        listener.accept()[0].close()
from shim.__main__ import main
sys.exit(main())
"""


@dataclass
class Bench:
    """A bundle, a launcher, and the daemons that were left behind."""

    bundle: Path
    launcher: Path
    sockets: Path
    environ: dict[str, str] = field(default_factory=dict)

    def run(
        self, *words: str, stdin: bytes = b"", bundle: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.launcher, *words],
            cwd=bundle or self.bundle,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", **self.environ},
            timeout=DEADLINE_S,
            check=False,
        )

    def params(self, container_id: str = "c1", **more: Any) -> bytes:
        message = bootstrap_pb2.BootstrapParams(
            instance_id=container_id,
            namespace="n",
            containerd_grpc_address="/c.sock",
            containerd_ttrpc_address="/c.sock.ttrpc",
            containerd_binary="/bin/true",
            socket_dir=str(self.sockets),
            **more,
        )
        return message.SerializeToString()

    def flags(self, container_id: str = "c1") -> list[str]:
        return ["-namespace", "n", "-address", "/c.sock", "-publish-binary", "/bin/true", "-id", container_id]

    def daemon(self, bundle: Path | None = None) -> dict[str, Any]:
        """What the daemon wrote down; it has by the time its listener accepts."""
        where = bundle or self.bundle
        path = (where / "address").read_text().removeprefix("unix://")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(DEADLINE_S)
            client.connect(path)
            assert client.recv(1) == b""  # accepted and closed: the daemon has come that far
        found: dict[str, Any] = json.loads((where / "daemon.json").read_text())
        return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="strato-") as name:
        root = Path(name)
        bundle = root / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text("{}")
        launcher = root / "containerd-shim-strato-v2"
        path = [str(CHECKOUT), *(entry for entry in sys.path if entry.endswith("site-packages"))]
        launcher.write_text(LAUNCHER.format(python=sys.executable, path=path, deadline=DEADLINE_S))
        launcher.chmod(0o755)
        made = Bench(bundle, launcher, root / "s", {"STRATO_CONFIG": str(root / "config.toml")})
        yield made
        for pid_file in root.glob("*/shim.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        for address in root.glob("*/address"):
            Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)


def runtime_options(body: bytes = b"") -> AnyMessage:
    options = runtimeoptions_pb2.Options(config_body=body)
    return AnyMessage(type_url="runtimeoptions.v1.Options", value=options.SerializeToString())


@pytest.mark.parametrize(
    "stdin", [b"", runtime_options().SerializeToString()], ids=["1.6-2.2", "with options"]
)
def test_start_old_call_answers_bare_address_and_nothing_else(bench: Bench, stdin: bytes) -> None:
    done = bench.run(*bench.flags(), "start", stdin=stdin)

    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(b"unix:///run/containerd/s/")
    assert len(done.stdout) == len("unix:///run/containerd/s/") + 64
    assert (bench.bundle / "address").read_bytes() == done.stdout
    assert bench.daemon()["address"] == done.stdout.decode().removeprefix("unix://")
    assert int((bench.bundle / "shim.pid").read_text()) == bench.daemon()["pid"]


def test_start_isula_call_answers_bare_address(bench: Bench) -> None:
    done = bench.run("--id", "c1", "--namespace", "isula", "start")

    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(b"unix:///run/containerd/s/")
    assert not done.stdout.endswith(b"\n")


def test_start_bootstrap_params_answers_bootstrap_result_in_socket_dir(bench: Bench) -> None:
    done = bench.run(*bench.flags(), "start", stdin=bench.params())

    result = bootstrap_pb2.BootstrapResult.FromString(done.stdout)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address.startswith(f"unix://{bench.sockets}/")
    assert bench.daemon()["address"] == result.address.removeprefix("unix://")


def test_start_daemon_gets_listener_stdin_bundle_and_its_own_session(bench: Bench) -> None:
    (bench.bundle / "log").write_text("")
    stdin = bench.params()

    bench.run(*bench.flags(), "-debug", "start", stdin=stdin)
    daemon = bench.daemon()

    assert daemon["argv"][-1] == "run"
    assert "-debug" in daemon["argv"]
    assert bytes.fromhex(daemon["stdin"]) == stdin
    assert daemon["cwd"] == str(bench.bundle)
    assert daemon["session"]
    assert daemon["output"] == ["/dev/null", str(bench.bundle / "log")]
    # 0 to 2, the listener, stdin; listdir's own and the file being written come on top.
    assert daemon["fds"][:5] == [0, 1, 2, 3, 4]
    assert len(daemon["fds"]) == 7


def test_start_group_annotation_second_container_gets_the_address_of_the_first(bench: Bench) -> None:
    member = bench.bundle.parent / "member"
    member.mkdir()
    config = json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": "c1"}})
    (member / "config.json").write_text(config)

    first = bench.run(*bench.flags("c1"), "start")
    second = bench.run(*bench.flags("c2"), "start", bundle=member)

    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert (member / "address").read_bytes() == first.stdout
    assert not (member / "shim.pid").exists()


def test_start_socket_of_a_killed_shim_is_replaced(bench: Bench) -> None:
    first = bench.run(*bench.flags(), "start", stdin=bench.params())
    killed = bench.daemon()["pid"]
    pidfd = os.pidfd_open(killed)
    os.kill(killed, signal.SIGKILL)
    wait_for_end(pidfd)

    second = bench.run(*bench.flags(), "start", stdin=bench.params())

    assert second.stdout == first.stdout
    assert bench.daemon()["pid"] != killed


def wait_for_end(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)


@pytest.mark.parametrize(
    ("words", "stdin", "complaint"),
    [
        (["start"], b"", b"Flag -id is missing"),
        (["-id", "c1", "start"], b"\xff\xff\xff", b"no protobuf"),
        (["-id", "c1", "restart"], b"", b"Unknown verb"),
    ],
)
def test_start_mistake_is_said_in_words_with_exit_code_1(
    bench: Bench, words: list[str], stdin: bytes, complaint: bytes
) -> None:
    done = bench.run(*words, stdin=stdin)

    assert done.returncode == 1
    assert complaint in done.stdout
    assert b"Traceback" not in done.stdout


def test_start_socket_dir_too_long_is_refused(bench: Bench) -> None:
    message = bootstrap_pb2.BootstrapParams(instance_id="c1", namespace="n", socket_dir="/" + "x" * 60)

    done = bench.run("-id", "c1", "-namespace", "n", "start", stdin=message.SerializeToString())

    assert (done.returncode, b"longer than 106" in done.stdout) == (1, True)


@pytest.mark.parametrize(("version", "line"), [(3, ""), (2, "grpc_version = 2\n")])
def test_start_grpc_answers_json_with_path_and_version(bench: Bench, version: int, line: str) -> None:
    Path(bench.environ["STRATO_CONFIG"]).write_text(f'[shim]\ntransport = "grpc"\n{line}')

    done = bench.run(*bench.flags(), "start")

    answer = json.loads(done.stdout)
    assert (answer["version"], answer["protocol"]) == (version, "grpc")
    assert answer["address"].startswith("/run/containerd/s/")


def test_start_grpc_by_options_answers_bootstrap_result(bench: Bench) -> None:
    body = b'[shim]\ntransport = "grpc"\n'
    extension = bootstrap_pb2.Extension(value=runtime_options(body))

    done = bench.run(*bench.flags(), "start", stdin=bench.params(extensions=[extension]))

    result = bootstrap_pb2.BootstrapResult.FromString(done.stdout)
    assert (result.version, result.protocol) == (3, "grpc")
    assert result.address.startswith(f"{bench.sockets}/")


def test_start_unknown_transport_is_refused_by_key_and_source(bench: Bench) -> None:
    Path(bench.environ["STRATO_CONFIG"]).write_text('[shim]\ntransport = "carrier pigeon"\n')

    done = bench.run(*bench.flags(), "start")

    assert done.returncode == 1
    assert b"shim.transport" in done.stdout
    assert bench.environ["STRATO_CONFIG"].encode() in done.stdout


def test_info_answers_runtime_info(bench: Bench) -> None:
    done = bench.run("-info", stdin=runtime_options().SerializeToString())

    assert types_pb2.RuntimeInfo.FromString(done.stdout).name == "io.containerd.strato.v2"


def test_version_is_said(bench: Bench) -> None:
    assert bench.run("-v").stdout.startswith(b"containerd-shim-strato-v2 ")
