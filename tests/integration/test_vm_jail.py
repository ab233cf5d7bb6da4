"""What a strato-vmm that has been taken over could do: code of an attacker in any of its threads.

The attacker's calls are made by the threads of a real VM (framework/injection.py), under all that binds them.
"""

import errno
import os
import re
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.injection import Thread, ThreadKilledError, threads
from tests.framework.launched import LaunchedVmm
from tests.framework.vm import Vm, VmFactory
from vmm.config import JailConfig, ShareConfig, VsockConfig
from vmm.decoding import encode
from vmm.jail import view

pytestmark = pytest.mark.integration

# asm/unistd_64.h
READ, SOCKET, EXECVE, PTRACE, MOUNT, INIT_MODULE = 0, 41, 59, 101, 165, 175
OPENAT, UNSHARE, BPF, CLONE3, KILL, CONNECT, CLOSE = 257, 272, 321, 435, 62, 42, 3
UMOUNT2, CHROOT, KEXEC_LOAD, PERF_EVENT_OPEN, IO_URING_SETUP, SETUID = 166, 161, 246, 298, 425, 105
AT_FDCWD = -100
SHARE_CAPABILITIES = 0x8800_00DB  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP

FORBIDDEN = {
    "execve": (EXECVE, 0, 0, 0),
    "ptrace": (PTRACE, 0, 0, 0, 0),
    "mount": (MOUNT, 0, 0, 0, 0, 0),
    "umount": (UMOUNT2, 0, 0),
    "bpf": (BPF, 0, 0, 0),
    "socket": (SOCKET, 2, 1, 0),
    "unix socket": (SOCKET, 1, 1, 0),
    "unshare": (UNSHARE, 0x1000_0000),
    "chroot": (CHROOT, 0),
    "kexec_load": (KEXEC_LOAD, 0, 0, 0, 0),
    "perf_event_open": (PERF_EVENT_OPEN, 0, 0, 0, 0, 0),
    "setuid": (SETUID, 0),
    "init_module": (INIT_MODULE, 0, 0, 0),
}
DAILY = ("execve", "ptrace", "mount", "bpf", "socket")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A folder of the host that a VM is given."""
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "file").write_text("shared")
    return folder


@pytest.fixture
def vm(vms: VmFactory, share: Path) -> Iterator[Vm]:
    """A VM with devices of several kinds, in its jail."""
    config = vms.config()
    yield vms.boot(
        replace(
            config,
            vsock=VsockConfig(socket=config.runtime_dir / "v.sock"),
            shares=(ShareConfig(tag="t", directory=share),),
        )
    )


def fields(task: Path) -> dict[str, str]:
    """The lines of a thread's status."""
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_every_thread_is_confined_and_only_those_of_shares_have_capabilities(vm: Vm) -> None:
    tasks = [fields(task) for task in Path(f"/proc/{vm.process.pid}/task").iterdir()]
    processes = [fields(Path(f"/proc/{child}")) for child in vm.children()]

    assert len(tasks) >= 5
    for task in [*tasks, *processes]:
        held = int(task["CapPrm"], 16) | int(task["CapEff"], 16) | int(task["CapInh"], 16)
        allowed = SHARE_CAPABILITIES if task["Name"].startswith(("fs", "keeper")) else 0
        assert held & ~allowed == 0, task["Name"]
        assert (task["CapBnd"], task["CapAmb"]) == ("0" * 16, "0" * 16), task["Name"]
        assert (task["NoNewPrivs"], task["Seccomp"]) == ("1", "2"), task["Name"]


@pytest.fixture
def generous_host() -> Iterator[None]:
    """Whoever starts strato-vmm has as few limits of what it is to be limited in as this host allows."""
    kinds = [resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE]
    kinds += [resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO]
    before = {kind: resource.getrlimit(kind) for kind in kinds}
    for kind in kinds:
        with suppress(ValueError):  # root may have given up CAP_SYS_RESOURCE
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for kind, limit in before.items():
            resource.setrlimit(kind, limit)


def limits(pid: int) -> dict[str, list[str]]:
    """The soft and hard limits of a process; a name has 26 columns (fs/proc/base.c)."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


@pytest.mark.usefixtures("generous_host")
def test_no_process_has_more_of_a_resource_than_it_needs(vm: Vm) -> None:
    most = {
        "Max core file size": 0,
        "Max locked memory": 8 << 20,
        "Max msgqueue size": 0,
        "Max nice priority": 0,
        "Max realtime priority": 0,
    }
    for pid in (vm.process.pid, *vm.children()):
        found = limits(pid)
        assert {name: found[name] for name in most} == {
            name: [str(value)] * 2 for name, value in most.items()
        }
        # Shares need many, QEMU does not.
        soft, hard = (int(value) for value in found["Max open files"])
        assert soft == hard <= (1 << 20 if pid == vm.process.pid else 1024)


SIGN = 0x5EED_5EED


def strangers() -> list[int]:
    """Descriptors of all kinds of which strato-vmm has some of its own."""
    with socket.socket(socket.AF_UNIX) as lone:
        return [*os.pipe(), lone.detach(), os.memfd_create("stranger"), os.eventfd(SIGN)]


def open_files(pid: int) -> list[tuple[int, str]]:
    """Inode and name of what a process has open; of an eventfd, which has no inode of its own, its count."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # our own listing of this folder
            name = str(entry.readlink())
            if name == "anon_inode:[eventfd]":
                details = (entry.parents[1] / "fdinfo" / entry.name).read_text()
                name += re.sub(r"(?s).*eventfd-count: *(\w+).*", r" \1", details)
            found.append((entry.stat().st_ino, name))
    return found


def test_no_descriptor_is_open_that_nobody_has_listed(vms: VmFactory, share: Path, tmp_path: Path) -> None:
    config = replace(vms.config(), shares=(ShareConfig(tag="t", directory=share),))
    secrets = [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), *strangers()]
    inodes = {os.fstat(fd).st_ino for fd in secrets[:-1]}
    try:
        mine = open_files(os.getpid())
        vm = vms.start(config, more_fds=secrets)
        vm.wait_ready()
        found = [file for pid in (vm.process.pid, *vm.children()) for file in open_files(pid)]
    finally:
        for fd in secrets:
            os.close(fd)

    sign = f"anon_inode:[eventfd] {SIGN:x}"
    # What is looked for would be found.
    assert inodes <= {inode for inode, _ in mine}
    assert sign in {name for _, name in mine}
    assert [name for inode, name in found if inode in inodes or name == sign] == []
    kinds = r"pipe:|socket:|anon_inode:|/memfd:|/proc/1/fd$"
    files = {str(vm.log_path), str(share), "/dev/null"}
    if vm.config.engine == "kvm":
        files |= {str(vm.config.boot.kernel), str(vm.config.boot.initrd), "/dev/kvm"}
    assert [name for _, name in found if not re.match(kinds, name) and name not in files] == []


def test_nothing_is_visible_but_what_the_configuration_lists(vm: Vm) -> None:
    root = Path(f"/proc/{vm.process.pid}/root")
    options = view.launch_options(encode(vm.config), "/")
    named = {Path(path) for path in options if path.startswith("/")}
    listed = {form for path in named for form in (path, path.resolve())} - {Path("/")}
    libraries = re.compile(r".*/lib.*\.so(\.[0-9.]+)?$|/etc/ld\.so\.")

    seen, whole = [], set()
    for folder, folders, files in os.walk(root):
        inside = Path("/", Path(folder).relative_to(root))
        if inside == Path("/"):
            folders.remove("proc")
        seen += [inside / name for name in files]
        # A folder that is listed may be seen whole: the standard library alone has thousands of files.
        whole |= {inside / name for name in folders} & listed
        folders[:] = [name for name in folders if inside / name not in listed]
    assert [path for path in seen if path not in listed and not libraries.match(str(path))] == []
    assert len(seen) > 10
    assert Path(view.__file__).resolve().parents[1] in whole
    for path in ("etc/passwd", "etc/shadow", "root/.ssh", "home", "sys", "bin/sh", "usr/bin/env", "dev/mem"):
        assert not (root / path).exists(), path
    assert not (root / "proc/sys").exists()


def test_files_of_the_host_and_of_other_sandboxes_are_out_of_reach(
    vm: Vm, vms: VmFactory, share: Path, tmp_path: Path
) -> None:
    other = vms.boot()
    (tmp_path / "beside").write_text("not shared")
    package = str(Path(view.__file__))
    with Thread(vm.process.pid, threads(vm.process.pid)["fs0"]) as taken_over:

        def attempt(path: str | Path, flags: int) -> int:
            result = taken_over.call(OPENAT, AT_FDCWD, taken_over.text(path), flags, 0)
            return 0 if result >= 0 else -result

        assert attempt(share / "file", os.O_RDWR) == 0
        hidden = ("/etc/passwd", "/root", tmp_path / "beside", other.directory, other.qmp_path)
        for path in (*hidden, "/proc/1/root/etc/passwd", f"{share}/../beside", "/sys", "/dev/kmsg"):
            assert attempt(path, os.O_RDONLY) in (errno.ENOENT, errno.EACCES), path
        for path in (package, "/etc/new", share.parent / "new"):
            assert attempt(path, os.O_WRONLY | os.O_CREAT) in (errno.EACCES, errno.EROFS, errno.ENOENT), path
    assert vm.ask("echo alive") == "alive"


def test_processes_of_the_host_are_out_of_reach(vm: Vm) -> None:
    with Thread(vm.process.pid) as taken_over:
        assert taken_over.call(KILL, os.getpid(), signal.SIGCONT) == -errno.ESRCH
    assert vm.ask("echo alive") == "alive"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in DAILY else pytest.mark.full) for name in FORBIDDEN],
)
def test_forbidden_call_of_the_first_thread_ends_the_vm(vms: VmFactory, name: str) -> None:
    vm = vms.boot()
    assert isinstance(vm.process, LaunchedVmm)

    with pytest.raises(ThreadKilledError) as killed, Thread(vm.process.pid) as taken_over:
        taken_over.call(*FORBIDDEN[name])

    assert killed.value.args == (signal.SIGSYS,)
    vm.process.reaped(-signal.SIGSYS)


@pytest.mark.parametrize(
    "name",
    [
        "keeper",
        "rng",
        pytest.param("vcpu0", marks=pytest.mark.engine("kvm", reason="a vCPU is one of QEMU's threads")),
    ],
)
def test_forbidden_call_of_any_other_thread_ends_the_vm(vms: VmFactory, name: str) -> None:
    vm = vms.boot()

    with (
        pytest.raises(ThreadKilledError),
        Thread(vm.process.pid, threads(vm.process.pid)[name]) as taken_over,
    ):
        taken_over.call(EXECVE, 0, 0, 0)

    assert vm.process.wait(10) == -signal.SIGSYS


def test_new_process_of_the_keeper_is_refused(vm: Vm) -> None:
    with Thread(vm.process.pid, threads(vm.process.pid)["keeper"]) as taken_over:
        assert taken_over.call(CLONE3, 0, 0) == -errno.ENOSYS


def test_without_the_jail_strato_vmm_says_so(vms: VmFactory) -> None:
    vm = vms.boot(replace(vms.config(), jail=JailConfig(enabled=False)))

    assert "The jail is off" in vm.log_path.read_text()
