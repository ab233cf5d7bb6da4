"""strato-holder: holds a network namespace and a pid, costs nothing, ends when told."""

import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.paths import library_dir

pytestmark = pytest.mark.native

DEADLINE_S = 20.0


@contextmanager
def holder(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A holder and its status line; killed at the end."""
    reader, writer = os.pipe()
    program = str(library_dir() / "strato-holder")
    with subprocess.Popen([program, "--status-fd", str(writer), *arguments], pass_fds=[writer]) as process:
        os.close(writer)
        with os.fdopen(reader) as status:
            line = status.read()
        yield process, line
        process.kill()


def netns_of(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def in_netns(pid: int, command: Sequence[str]) -> str:
    return subprocess.run(
        ["nsenter", "-t", str(pid), "-n", *command], capture_output=True, text=True, check=True
    ).stdout


def test_new_netns_has_loopback_up_and_nothing_else() -> None:
    with holder("--new-netns") as (process, line):
        assert line == "ready\n"
        assert netns_of(process.pid) != netns_of("self")
        links = in_netns(process.pid, ["ip", "-o", "link"])
        assert len(links.splitlines()) == 1
        assert "<LOOPBACK,UP,LOWER_UP>" in links
        assert "127.0.0.1/8" in in_netns(process.pid, ["ip", "-o", "addr"])


def test_existing_netns_is_joined() -> None:
    with (
        holder("--new-netns") as (first, _),
        holder("--netns", f"/proc/{first.pid}/ns/net") as (second, line),
    ):
        assert line == "ready\n"
        assert netns_of(first.pid) == netns_of(second.pid)


def test_every_descriptor_is_closed_and_the_directory_is_the_root(tmp_path: Path) -> None:
    with holder() as (process, _):
        wait_for_fds_closed(process.pid)
        assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/")


def wait_for_fds_closed(pid: int) -> None:
    # "ready" is written just before the descriptors are closed.
    for _ in range(10_000):
        if not list(Path(f"/proc/{pid}/fd").iterdir()):
            return
    raise AssertionError(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_private_memory_is_below_300_kib() -> None:
    with holder("--new-netns") as (process, _):
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        anonymous = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:")]
        assert 0 < anonymous[0] < 300


def test_sigterm_ends_it_even_when_the_caller_has_it_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with holder() as (process, _):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            process.terminate()
            assert process.wait(DEADLINE_S) == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def test_name_is_what_ps_shows() -> None:
    with holder("--name", "strato: web") as (process, _):
        assert Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0") == b"strato: web"
        assert Path(f"/proc/{process.pid}/comm").read_text() == "strato: web\n"


def test_cgroup_is_entered() -> None:
    mounted = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
    root = next(path for path in mounted if (path / "cgroup.procs").exists())
    group = root / f"strato-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        with holder("--cgroup", str(group)) as (process, line):
            assert line == "ready\n"
            assert (group / "cgroup.procs").read_text().split() == [str(process.pid)]
    finally:
        group.rmdir()


def test_die_with_parent_ends_it_when_the_parent_is_killed() -> None:
    script = (
        "import os,subprocess,sys; r,w=os.pipe(); "
        "p=subprocess.Popen([sys.argv[1],'--status-fd',str(w),'--die-with-parent'],pass_fds=[w]); "
        "assert os.read(r,100)==b'ready\\n'; print(p.pid,flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", script, str(library_dir() / "strato-holder")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        watch = os.pidfd_open(pid := int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        ready = select.select([watch], [], [], DEADLINE_S)[0]
        os.close(watch)
    assert ready, "the holder outlived its parent"
    os.waitpid(pid, 0)  # the test session is the subreaper


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--netns", "/nonexistent"],
            "error Cannot open network namespace /nonexistent: No such file or directory",
        ),
        (["--netns", "/etc/passwd"], "error Cannot enter network namespace /etc/passwd: Invalid argument"),
        (["--cgroup", "/nonexistent"], "error Cannot open cgroup /nonexistent: No such file or directory"),
        (["--frob"], 'error Option "--frob" is unknown'),
        (["--netns", "/x", "--new-netns"], "error Options --netns and --new-netns exclude each other"),
    ],
)
def test_failure_is_one_line_and_exit_1(arguments: list[str], text: str) -> None:
    with holder(*arguments) as (process, line):
        assert line.startswith(text)
        assert line.count("\n") == 1
        assert process.wait(DEADLINE_S) == 1
