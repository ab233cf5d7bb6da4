"""`delete` from what is on disk, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import leftovers, names, state
from shim.protos.generated import task_pb2

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[3]


class Bench:
    """A state directory of a sandbox, the configuration that leads to it, processes to be killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = root / "bundle"
        self.bundle.mkdir()
        self.config = root / "config.toml"
        self.config.write_text(f'[shim]\nstate_root = "{root / "state"}"\n')
        self.processes: list[subprocess.Popen[bytes]] = []

    def state_dir(self, group: str = "c1") -> Path:
        path = Path(names.state_dir(str(self.root / "state"), "/c.sock", "n", group))
        path.mkdir(parents=True, exist_ok=True)
        return path

    def process(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "60"])
        self.processes.append(process)
        return process

    def delete(self, container_id: str = "c1") -> task_pb2.DeleteResponse:
        words = ["-namespace", "n", "-address", "/c.sock", "-bundle", str(self.bundle), "-id", container_id]
        path = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})"
        code = f"{path}; from shim.__main__ import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-IS", "-c", code, *words, "delete"],
            cwd=self.bundle,
            stdout=subprocess.PIPE,
            env={"STRATO_CONFIG": str(self.config)},
            timeout=10,
            check=True,
        )
        return task_pb2.DeleteResponse.FromString(done.stdout)

    def write_state(self, group: str = "c1", **data: Any) -> Path:
        directory = self.state_dir(group)
        file = state.StateFile(directory)
        file.data.update(data)
        file.save()
        return directory


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def containers(**holders: int) -> dict[str, Any]:
    return {name: {"holder": state.process_entry(pid)} for name, pid in holders.items()}


def test_delete_of_nothing_answers_137_now(bench: Bench) -> None:
    answer = bench.delete()

    assert answer.exit_status == 137
    assert abs(answer.exited_at.ToNanoseconds() - time.time_ns()) < 60 * 10**9


def test_delete_dead_shim_kills_its_processes_and_removes_its_directory(bench: Bench) -> None:
    vmm, holder = bench.process(), bench.process()
    directory = bench.write_state(vmm=state.process_entry(vmm.pid), containers=containers(c1=holder.pid))
    (directory / "vmm").mkdir()
    (directory / "vmm" / "exit.json").write_text("{}")

    answer = bench.delete()

    assert answer.pid == holder.pid
    assert (vmm.wait(5), holder.wait(5)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert not directory.exists()


def test_delete_pid_of_another_process_is_spared(bench: Bench) -> None:
    stranger = bench.process()
    entry = {"pid": stranger.pid, "start_time": state.start_time_of(stranger.pid) + 1}
    bench.write_state(vmm=entry, containers={})

    bench.delete()

    assert stranger.poll() is None


def test_delete_member_of_a_living_shim_ends_that_container_only(bench: Bench) -> None:
    (bench.bundle / "config.json").write_text(
        json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}})
    )
    vmm, holder, other = bench.process(), bench.process(), bench.process()
    directory = bench.write_state(
        "pod", vmm=state.process_entry(vmm.pid), containers=containers(c1=holder.pid, c2=other.pid)
    )
    lock = state.lock(directory)
    assert lock is not None

    bench.delete("c1")

    assert holder.wait(5) == -signal.SIGKILL
    assert (vmm.poll(), other.poll()) == (None, None)
    assert (directory / state.FILE_NAME).exists()
    os.close(lock)


def test_delete_sandbox_of_a_shim_that_hangs_kills_the_shim_within_five_seconds(bench: Bench) -> None:
    directory = bench.state_dir()
    shim = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w'); "
         "fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)", directory / "lock"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    bench.processes.append(shim)
    assert shim.stdout is not None
    assert shim.stdout.readline() == b"locked\n"
    bench.write_state(shim=state.process_entry(shim.pid), containers={})
    began = time.monotonic()

    bench.delete()

    assert time.monotonic() - began < 5
    assert shim.wait(5) == -signal.SIGKILL
    assert not directory.exists()
    shim.stdout.close()


def test_delete_socket_without_listener_is_removed(bench: Bench) -> None:
    path = bench.root / "s"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
    (bench.bundle / "address").write_text(f"unix://{path}")

    bench.delete()

    assert not path.exists()


def test_delete_shim_without_state_directory_is_killed(bench: Bench) -> None:
    words = ["-c", "import time; time.sleep(60)", "-namespace", "n", "-id", "c1", "run"]
    shim = subprocess.Popen([sys.executable, *words])
    bench.processes.append(shim)
    (bench.bundle / "shim.pid").write_text(str(shim.pid))

    bench.delete()

    assert shim.wait(5) == -signal.SIGKILL


def test_delete_pid_file_that_names_a_stranger_spares_it(bench: Bench) -> None:
    stranger = bench.process()
    (bench.bundle / "shim.pid").write_text(str(stranger.pid))

    bench.delete()

    assert stranger.poll() is None


def test_delete_garbage_state_still_removes_the_directory(bench: Bench) -> None:
    directory = bench.state_dir()
    (directory / state.FILE_NAME).write_text('{"version": 1, "vmm": {"pid": "x"}, "containers": {}}')

    bench.delete()

    assert not directory.exists()


def test_remove_tree_spares_files_of_a_share_that_still_shows_them(tmp_path: Path) -> None:
    inside = tmp_path / "s" / "shared" / "volumes" / "c1"
    inside.mkdir(parents=True)
    (inside / "precious").write_text("data")
    (tmp_path / "s" / "console.log").write_text("gone")

    leftovers.remove_tree(str(tmp_path / "s"))

    assert (inside / "precious").read_text() == "data"
    assert not (tmp_path / "s" / "console.log").exists()


def test_remove_tree_reaches_directories_beyond_every_path(tmp_path: Path) -> None:
    # What a strato-vmm that has been taken over may leave: too deep for a path and for a recursion.
    (tmp_path / "s" / "vmm").mkdir(parents=True)
    (tmp_path / "s" / "shared").mkdir()
    here = os.open(tmp_path / "s" / "vmm", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("nested", dir_fd=here)
        os.symlink("/etc/passwd", "link", dir_fd=here)
        below = os.open("nested", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    leftovers.remove_tree(str(tmp_path / "s"))

    assert not (tmp_path / "s").exists()
    assert Path("/etc/passwd").exists()


def test_delete_after_an_orderly_end_looks_for_nothing(bench: Bench) -> None:
    directory = bench.write_state()
    (bench.bundle / names.ENDED_NAME).touch()

    answer = bench.delete()

    assert answer.exit_status == 128 + signal.SIGKILL
    assert directory.exists()


_LATE_DAEMON = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
time.sleep(0.2)
with open(sys.argv[2], "w") as file:
    file.write(str(os.getpid()))
time.sleep(60)
"""


def test_delete_ends_a_daemon_that_has_not_written_its_pid_yet(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "shim.sock"
    (bench.bundle / "address").write_text(f"unix://{path}")
    words = [str(path), str(bench.bundle / "shim.pid"), "-id", "c1", "run"]
    daemon = subprocess.Popen([sys.executable, "-c", _LATE_DAEMON, *words], stdout=subprocess.PIPE)
    bench.processes.append(daemon)
    with daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()

        bench.delete()

        assert daemon.wait(5) == -signal.SIGKILL
    assert not path.exists()
