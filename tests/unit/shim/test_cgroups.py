import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cgroups import Hierarchy, RelativePath, SandboxCgroup, find_hierarchies, remove, translate
from shim.errors import HostError, SpecError

_unit = pytest.mark.unit
_native = [
    pytest.mark.native,
    pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK) or os.geteuid() != 0, reason="Needs root"),
]

_V2 = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
_HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd\n"
    "34 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "35 31 0:32 / /mnt/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
_OWN = "5:memory:/pod\n4:name=systemd:/init.scope\n3:cpu,cpuacct:/\n0::/user.slice\n"


@_unit
def test_hierarchies_of_a_v2_host() -> None:
    assert find_hierarchies(_V2, "0::/user.slice\n") == (
        Hierarchy("/sys/fs/cgroup", 2, frozenset(), "/user.slice"),
    )


@_unit
def test_hierarchies_of_a_hybrid_host_are_those_of_v1() -> None:
    found = find_hierarchies(_HYBRID, _OWN)

    assert [(tree.mount_point, tree.version, tree.own) for tree in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", 1, "/"),
        ("/sys/fs/cgroup/systemd", 1, "/init.scope"),
        ("/sys/fs/cgroup/memory", 1, "/pod"),
    ]
    assert found[0].controllers == {"cpu", "cpuacct"}


@_unit
def test_hierarchies_of_a_host_without_cgroups_are_none() -> None:
    assert find_hierarchies("31 23 0:28 / / rw - tmpfs tmpfs rw\n", "") == ()


@_unit
@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/default/hello", "default/hello"),
        ("//a///b/./", "a/b"),
        ("system.slice:docker:5c", "system.slice/docker-5c.scope"),
        (":docker:5c", "system.slice/docker-5c.scope"),
        ("-.slice:docker:5c", "docker-5c.scope"),
        ("a.slice::5c", "a.slice/5c.scope"),
        ("a.slice:x:b.slice", "a.slice/b.slice"),
        (
            "kubepods-burstable-pod1f_2.slice:cri-containerd:9a",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f_2.slice/cri-containerd-9a.scope",
        ),
    ],
)
def test_translate_gives_the_directories(path: str, parts: str) -> None:
    assert translate(path) == RelativePath(tuple(parts.split("/")), below_own=False)


@_unit
def test_translate_of_a_relative_path_is_below_the_own_cgroup() -> None:
    assert translate("a/b") == RelativePath(("a", "b"), below_own=True)


@_unit
def test_translate_of_nothing_is_nothing() -> None:
    assert translate("") is None


@_unit
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/..", "/a/../../b", "a/..", "/a\0b", "/a\nb", "/" + "x" * 256, "."),
        *("a:b:c", "a.slice:b:", "a.slice:b:..", "a.slice:../x:c", "a--b.slice:p:c", "-a.slice:p:c"),
    ],
)
def test_translate_of_a_path_that_leads_elsewhere_is_an_error(path: str) -> None:
    with pytest.raises(SpecError, match=r"\$\.linux\.cgroupsPath"):
        translate(path)


@_unit
def test_create_records_what_was_not_there_and_remove_takes_only_that(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    cgroup = SandboxCgroup("/a/b/c", "hello", (Hierarchy(str(tmp_path), 2, frozenset(), "/"),))

    cgroup.create()

    assert cgroup.directories == (tmp_path / "a" / "b" / "c",)
    assert cgroup.created == [str(tmp_path / "a" / "b"), str(tmp_path / "a" / "b" / "c")]
    cgroup.remove()
    cgroup.remove()
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


@_unit
def test_create_of_a_relative_path_starts_at_the_own_cgroup(tmp_path: Path) -> None:
    cgroup = SandboxCgroup("x", "hello", (Hierarchy(str(tmp_path), 2, frozenset(), "/own"),))

    cgroup.create()

    assert cgroup.directories == (tmp_path / "own" / "x",)


@_unit
def test_create_without_a_path_makes_nothing(tmp_path: Path) -> None:
    cgroup = SandboxCgroup("", "hello", (Hierarchy(str(tmp_path), 2, frozenset(), "/"),))

    cgroup.create()

    assert cgroup.directories == ()
    assert list(tmp_path.iterdir()) == []


@_unit
def test_create_that_fails_leaves_nothing(tmp_path: Path) -> None:
    good, bad = Hierarchy(str(tmp_path), 2, frozenset(), "/"), Hierarchy("/proc/sys", 2, frozenset(), "/")
    cgroup = SandboxCgroup("/a/b", "hello", (good, bad))

    with pytest.raises(HostError, match="Cannot create cgroup '/a/b' of hello"):
        cgroup.create()

    assert list(tmp_path.iterdir()) == []


@_unit
def test_remove_leaves_a_parent_that_another_sandbox_uses(tmp_path: Path) -> None:
    trees = (Hierarchy(str(tmp_path), 2, frozenset(), "/"),)
    first, second = SandboxCgroup("/p/one", "one", trees), SandboxCgroup("/p/two", "two", trees)
    first.create()
    second.create()

    first.remove()
    second.remove()

    assert [path.name for path in tmp_path.rglob("*")] == ["p"]


@_unit
def test_import_needs_nothing_heavy() -> None:
    script = "import sys, shim.cgroups; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()

    assert not {"asyncio", "json", "pyroute2", "google.protobuf", "subprocess", "socket"} & set(loaded)


def _real_trees() -> list[str]:
    return ["found", "unified"] if Path("/sys/fs/cgroup/unified/cgroup.procs").exists() else ["found"]


@pytest.fixture(params=_real_trees())
def real_cgroup(request: pytest.FixtureRequest) -> Iterator[SandboxCgroup]:
    trees = find_hierarchies()
    if request.param == "unified":
        trees = (Hierarchy("/sys/fs/cgroup/unified", 2, frozenset(), "/"),)
    cgroup = SandboxCgroup(f"/strato-unit-{os.getpid()}/one", "one", trees)
    yield cgroup
    assert not [path for path in cgroup.directories if path.exists()]
    assert not [tree for tree in trees if list(Path(tree.mount_point).glob(f"strato-unit-{os.getpid()}*"))]


def _enter(cgroup: SandboxCgroup, pid: int) -> None:
    for directory in cgroup.directories:
        (directory / "cgroup.procs").write_text(str(pid))


class TestOnTheHost:
    pytestmark = _native

    def test_process_can_enter_and_the_cgroup_goes_when_it_has_died(self, real_cgroup: SandboxCgroup) -> None:
        real_cgroup.create()
        with subprocess.Popen(["sleep", "60"]) as process:
            _enter(real_cgroup, process.pid)
            process.kill()

            real_cgroup.remove()

    def test_remove_with_a_living_process_says_so(self, real_cgroup: SandboxCgroup) -> None:
        real_cgroup.create()
        with subprocess.Popen(["sleep", "60"]) as process:
            _enter(real_cgroup, process.pid)

            with pytest.raises(HostError, match=r"Cannot remove cgroup .*one.*: processes are still in it"):
                remove(real_cgroup.created, deadline_s=0.05)

            process.kill()
        real_cgroup.remove()

    def test_remove_of_the_sandbox_ends_what_nobody_knows_of(self, real_cgroup: SandboxCgroup) -> None:
        real_cgroup.create()
        with subprocess.Popen(["sleep", "60"]) as process:
            _enter(real_cgroup, process.pid)

            real_cgroup.remove()

            assert process.wait() == -signal.SIGKILL

    def test_remove_after_the_shim_died_needs_the_record_only(self, real_cgroup: SandboxCgroup) -> None:
        real_cgroup.create()
        record = list(real_cgroup.created)

        remove(record)
        remove(record)
