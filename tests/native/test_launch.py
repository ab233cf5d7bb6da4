"""strato-launch: new namespaces and cgroups, a child of the caller, errors in words, nothing left behind."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.paths import launcher
from vmm.sys import LaunchError, launch

pytestmark = pytest.mark.native

DEADLINE_S = 20.0
SLEEP = ["--", "/bin/sleep", "1000"]


@pytest.fixture(autouse=True)
def no_child_left(no_descriptor_left: None) -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Pids that are killed and reaped at the end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def start(*arguments: str, children: list[int]) -> int:
    pid = launch(str(launcher()), arguments).pid
    children.append(pid)
    return pid


def run(*arguments: str, pass_fds: tuple[int, ...] = ()) -> tuple[int, str]:
    """Run a program to its end; return its exit code and output."""
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        pid = launch(str(launcher()), arguments, stdio=(null, writer, writer), pass_fds=pass_fds).pid
    finally:
        os.close(writer)
        os.close(null)
    with os.fdopen(reader) as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def namespaces(pid: int | str) -> dict[str, str]:
    kinds = ("pid", "mnt", "ipc", "uts", "net")
    return {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds}


def test_program_runs_as_a_child_of_the_caller(children: list[int]) -> None:
    pid = start(*SLEEP, children=children)
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) == os.getpid()
    assert namespaces(pid) == namespaces("self")


def test_child_of_a_thread_can_be_waited_for_by_another() -> None:
    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(launch(str(launcher()), ["--", "/bin/true"]).pid))
    thread.start()
    thread.join()
    assert os.waitpid(pids[0], 0) == (pids[0], 0)


def test_every_namespace_is_new_and_the_program_is_its_init(children: list[int]) -> None:
    pid = start("--new", "pid,mount,ipc,uts,net", *SLEEP, children=children)
    own, theirs = namespaces("self"), namespaces(pid)
    assert all(own[kind] != theirs[kind] for kind in own)
    status = Path(f"/proc/{pid}/status").read_text()
    assert [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid")] == [[str(pid), "1"]]


def test_killing_the_init_kills_what_it_started(children: list[int]) -> None:
    pid = start("--new", "pid", "--", "/bin/sh", "-c", "sleep 1000 & wait", children=children)
    deadline = time.monotonic() + DEADLINE_S
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    watch = os.pidfd_open(int(found[0]))
    os.kill(pid, signal.SIGKILL)
    wait_readable(watch)
    os.close(watch)


def wait_readable(pidfd: int) -> None:
    assert select.select([pidfd], [], [], DEADLINE_S)[0], "the process did not end"


def test_mounts_of_the_host_arrive_and_own_mounts_do_not_leave(tmp_path: Path) -> None:
    host = tmp_path / "host"
    own = tmp_path / "own"
    host.mkdir()
    own.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(host)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(host)], check=True)
        code, output = run(
            "--new", "mount", "--", "/bin/sh", "-c",
            f"mount -t tmpfs none {own} && touch {own}/x && grep -c {own} /proc/self/mountinfo; "
            f"grep {host} /proc/self/mountinfo",
        )  # fmt: skip
        assert code == 0, output
        assert output.splitlines()[0] == "1"
        assert "master:" in output.splitlines()[1]
        assert list(own.iterdir()) == []
    finally:
        subprocess.run(["umount", str(host)], check=True)


def test_mount_proc_shows_the_new_pid_namespace() -> None:
    code, output = run("--new", "pid,mount", "--mount-proc", "--", "/bin/sh", "-c", "echo $$; ls /proc")
    assert code == 0, output
    words = output.split()
    assert words[0] == "1"
    assert {word for word in words[1:] if word.isdecimal()} <= {"1", "2", "3"}
    assert Path(f"/proc/{os.getpid()}").exists()


def test_hostname_and_chdir() -> None:
    _, output = run(
        "--new", "uts", "--hostname", "strato-test", "--chdir", "/usr", "--", "/bin/sh", "-c", "hostname; pwd"
    )
    assert output.split() == ["strato-test", "/usr"]
    assert os.uname().nodename != "strato-test"


def test_netns_is_entered(children: list[int]) -> None:
    first = start("--new", "net", *SLEEP, children=children)
    second = start("--netns", f"/proc/{first}/ns/net", *SLEEP, children=children)
    assert namespaces(first)["net"] == namespaces(second)["net"] != namespaces("self")["net"]


def cgroup_hierarchies() -> list[Path]:
    """One directory per hierarchy that is mounted here."""
    found = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup2" or (
            kind == "cgroup" and {"pids", "memory", "freezer"} & set(options.split(","))
        ):
            found.append(Path(target))
    return found


def test_child_is_in_its_cgroups_before_it_runs() -> None:
    name = f"strato-test-{uuid.uuid4().hex[:8]}"
    dirs = [hierarchy / name for hierarchy in cgroup_hierarchies()]
    assert dirs
    for path in dirs:
        path.mkdir()
    try:
        options = [word for path in dirs for word in ("--cgroup", str(path))]
        _, output = run(*options, "--", "/bin/cat", "/proc/self/cgroup")
        assert output.count(f"/{name}\n") == len(dirs), output
    finally:
        for path in dirs:
            path.rmdir()


def test_die_with_parent_ends_the_program_when_its_parent_is_killed() -> None:
    script = (
        "import sys; from vmm.sys import launch; "
        "options = ['--new', 'pid', '--die-with-parent', '--', '/bin/sleep', '1000']; "
        "print(launch(sys.argv[1], options).pid, flush=True); "
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(launcher())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        watch = os.pidfd_open(child)
        parent.kill()
        parent.wait()
        wait_readable(watch)
        os.close(watch)
    reap(child)


def reap(pid: int) -> None:
    """Under the test session's subreaper an orphan becomes ours."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def test_passed_descriptors_stay_open_and_the_launchers_own_do_not() -> None:
    inheritable = {fd for fd in range(3, 1024) if is_inheritable(fd)}
    reader, writer = os.pipe()
    code, output = run(
        "--", "/bin/sh", "-c", f"echo hello >/proc/self/fd/{writer}; ls /proc/self/fd", pass_fds=(writer,)
    )
    os.close(writer)
    assert code == 0, output
    assert os.read(reader, 100) == b"hello\n"
    os.close(reader)
    expected = {0, 1, 2, writer} | inheritable
    # One more: that through which ls reads the folder.
    assert len({int(word) for word in output.split()} - expected) == 1


def is_inheritable(fd: int) -> bool:
    """Some test runners are started with descriptors that everyone inherits."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_signals_are_as_the_system_has_them() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        _, output = run("--", "/bin/grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    _, blocked, _, ignored = output.split()
    assert int(blocked, 16) == 0
    # Bits 31 and 32 are the C library's own signals, which its posix_spawn ignores.
    assert int(ignored, 16) & 0x7FFFFFFF == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--", "/nonexistent"], "Cannot execute /nonexistent: No such file or directory"),
        (["--", "/etc/passwd"], "Cannot execute /etc/passwd: Permission denied"),
        (["--", "true"], "must be given as a path"),
        (["--cgroup", "/nonexistent", "--", "/bin/true"], "Cannot open cgroup /nonexistent: No such file"),
        (["--cgroup", "/tmp", "--", "/bin/true"], "/tmp is no cgroup"),
        (["--netns", "/nonexistent", "--", "/bin/true"], "Cannot open network namespace /nonexistent"),
        (
            ["--netns", "/etc/passwd", "--", "/bin/true"],
            "enter network namespace /etc/passwd: Invalid argument",
        ),
        (["--chdir", "/nonexistent", "--", "/bin/true"], "Cannot change to directory /nonexistent: No such"),
        (["--new", "user", "--", "/bin/true"], 'does not know namespace "user"'),
        (["--new", "pid"], "No program given"),
    ],
)
def test_failure_is_told_in_words_and_leaves_nothing(arguments: list[str], text: str) -> None:
    with pytest.raises(LaunchError) as caught:
        launch(str(launcher()), arguments)
    assert text in str(caught.value)
    assert "\t" not in str(caught.value)


def test_refused_cgroup_is_named_with_its_reason() -> None:
    name = f"strato-test-{uuid.uuid4().hex[:8]}"
    limited = [
        path for path in cgroup_hierarchies() if (path / "cpuset.cpus").exists() or path.name == "cpuset"
    ]
    cpuset = Path("/sys/fs/cgroup/cpuset")
    if not (limited or (cpuset / "cpuset.cpus").exists()):
        pytest.skip("no v1 cpuset hierarchy, whose empty groups refuse every process")
    (cpuset / name).mkdir()
    try:
        with pytest.raises(LaunchError, match=rf"into cgroup {cpuset / name}: No space left on device"):
            launch(str(launcher()), ["--cgroup", str(cpuset / name), "--", "/bin/true"])
    finally:
        (cpuset / name).rmdir()


def test_without_status_descriptor_errors_go_to_stderr() -> None:
    done = subprocess.run([launcher(), "--", "/nonexistent"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "strato-launch: Cannot execute /nonexistent: No such file or directory\n"
    os.waitpid(-1, 0)  # the failed child is ours


def test_vanished_status_reader_ends_the_program() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [launcher(), "--status-fd", str(writer), "--", "/bin/sleep", "1000"], pass_fds=[writer], check=False
    )
    os.close(writer)
    assert done.returncode == 1
    _, status = os.waitpid(-1, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
