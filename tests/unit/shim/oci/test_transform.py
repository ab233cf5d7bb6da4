import copy
from dataclasses import replace

import pytest

from shim.errors import SpecError, SpecRefusedError
from shim.oci.transform import guest_process

from .samples import CONTEXT, NAMES, edited, plan, sample

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", NAMES)
def test_transform_of_a_client_s_spec_leaves_no_host_path(name: str) -> None:
    before = sample(name)
    spec = copy.deepcopy(before)

    result = plan(spec)

    assert spec == before
    assert result.spec["root"]["path"] == "/run/strato/shares/rootfs/hello"
    assert result.spec["linux"]["cgroupsPath"] == "/hello"
    assert "annotations" not in result.spec
    text = str(result.spec)
    assert not any(host in text for host in ("/var/", "/srv/", "/run/containerd", "kubepods"))


def test_transform_of_the_ctr_sample_keeps_the_process() -> None:
    spec = sample()

    result = plan(spec)

    assert result.spec["process"] == spec["process"]
    assert result.rootfs_path == "/run/bundle/hello/rootfs"
    assert result.host_cgroup == "/default/hello"
    assert result.netns_path is None
    assert result.dropped == ()


def test_transform_of_the_cri_sample_finds_host_parts() -> None:
    result = plan(sample("cri"))

    assert result.netns_path == "/var/run/netns/cni-7"
    assert result.host_cgroup == "kubepods-burstable-pod1f.slice:cri-containerd:9a"
    assert result.hostname == "web-0"
    assert result.resolv_conf_source == "/var/lib/containerd/sandboxes/9a/resolv.conf"
    assert result.readonly
    assert [note.json_path for note in result.dropped] == [
        "$.process.apparmorProfile",
        "$.linux.resources.hugepageLimits",
        "$.mounts[9].source",
    ]


def test_transform_of_the_docker_sample_gives_cpus_to_the_host() -> None:
    result = plan(sample("docker"))

    assert result.rootfs_path == "/var/lib/docker/overlay2/5c/merged"
    assert result.cpuset_cpus == "0-1"
    assert result.spec["linux"]["resources"]["cpu"] == {"quota": 250000, "period": 100000}
    assert result.spec["linux"]["resources"]["memory"] == {"limit": 134217728}
    assert result.spec["linux"]["seccomp"] == sample("docker")["linux"]["seccomp"]
    assert [note.json_path for note in result.dropped] == [
        "$.process.apparmorProfile",
        "$.linux.resources.memory.swap",
        "$.linux.resources.memory.swappiness",
        "$.linux.resources.blockIO",
        "$.linux.namespaces[6]",
    ]


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("ociVersion", "2.0.0", "$.ociVersion"),
        ("ociVersion", 1, "$.ociVersion"),
        ("process", None, "$.process"),
        ("process", [], "$.process"),
        ("process.args", None, "$.process.args"),
        ("process.args", [], "$.process.args"),
        ("process.args.0", "a\0b", "$.process.args[0]"),
        ("process.args.1", 7, "$.process.args[1]"),
        ("process.args.0", "\ud800", "$.process.args[0]"),
        ("process.cwd", "tmp", "$.process.cwd"),
        ("process.env.1", "NAME", "$.process.env[1]"),
        ("process.user.uid", -1, "$.process.user.uid"),
        ("process.user.uid", 1 << 32, "$.process.user.uid"),
        ("process.user.uid", True, "$.process.user.uid"),
        ("process.user.uid", 1.0, "$.process.user.uid"),
        ("process.oomScoreAdj", 1001, "$.process.oomScoreAdj"),
        ("process.rlimits.0.type", "RLIMIT_FUN", "$.process.rlimits[0].type"),
        ("process.rlimits.0.soft", 4096, "$.process.rlimits[0].soft"),
        ("process.terminal", "yes", "$.process.terminal"),
        ("Process", {}, "$.Process"),
        ("root", {}, "$.root.path"),
        ("root.path", "", "$.root.path"),
        ("mounts", {}, "$.mounts"),
        ("mounts.0", "proc", "$.mounts[0]"),
        ("mounts.0.options", "ro", "$.mounts[0].options"),
        ("linux.namespaces.0.path", "proc/1/ns/pid", "$.linux.namespaces[0].path"),
        ("linux.namespaces.5", {"type": "pid"}, "$.linux.namespaces[5].type"),
        ("linux.maskedPaths.0", "proc", "$.linux.maskedPaths[0]"),
        ("linux.sysctl", {"net..x": "1"}, "$.linux.sysctl"),
        ("linux.sysctl", {"net.x": 1}, "$.linux.sysctl['net.x']"),
        ("linux.devices", [{"path": "/etc/x", "type": "c"}], "$.linux.devices[0].path"),
        ("linux.resources.devices.0.access", "x", "$.linux.resources.devices[0].access"),
        ("linux.resources.unified", {"../memory.max": "1"}, "$.linux.resources.unified"),
        ("annotations", {"a": 1}, "$.annotations.a"),
    ],
)
def test_transform_of_a_malformed_field_names_it(path: str, value: object, where: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(edited(path, value))

    assert not isinstance(caught.value, SpecRefusedError)
    assert caught.value.json_path == where


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("hooks", {"prestart": [{"path": "/bin/x"}]}, "$.hooks.prestart[0]"),
        ("hooks", {"poststop": [{"path": "/bin/x"}]}, "$.hooks.poststop[0]"),
        ("hooks", {"later": [{"path": "/bin/x"}]}, "$.hooks.later"),
        ("linux.namespaces", [{"type": t} for t in ("mount", "pid", "ipc", "uts")], "$.linux.namespaces"),
        ("linux.namespaces", [{"type": t} for t in ("mount", "ipc", "uts", "network")], "$.linux.namespaces"),
        ("linux.namespaces.1.path", "/proc/7/ns/ipc", "$.linux.namespaces[1].path"),
        ("linux.namespaces.3.path", "/proc/7/ns/mnt", "$.linux.namespaces[3].path"),
        ("linux.namespaces.5", {"type": "user", "path": "/proc/7/ns/user"}, "$.linux.namespaces[5]"),
        ("linux.namespaces.5", {"type": "user"}, "$.linux.namespaces[5]"),
        ("linux.devices", [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}], "$.linux.devices[0]"),
        (
            "linux.devices",
            [{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}],
            "$.linux.devices[0]",
        ),
        ("linux.netDevices", {"eth0": {}, "eth1": {"name": "x"}}, "$.linux.netDevices"),
        ("linux.timeOffsets", {"boottime": {"secs": 3}}, "$.linux.timeOffsets"),
        ("linux.rootfsPropagation", "rshared", "$.linux.rootfsPropagation"),
        ("linux.resources.cpu", {"realtimeRuntime": 5}, "$.linux.resources.cpu.realtimeRuntime"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}, "$.linux.seccomp.defaultAction"),
        ("linux.seccomp", {"defaultAction": "A", "extra": 1}, "$.linux.seccomp.extra"),
        ("process.capabilities.secret", ["CAP_KILL"], "$.process.capabilities.secret"),
        ("vm", {"kernel": {"path": "/vmlinux"}}, "$.vm"),
    ],
)
def test_transform_of_an_impossible_wish_is_refused_by_path(path: str, value: object, where: str) -> None:
    with pytest.raises(SpecRefusedError) as caught:
        plan(edited(path, value))

    assert caught.value.json_path == where


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("extra", {"a": 1}, "$.extra"),
        ("linux.extra", 1, "$.linux.extra"),
        ("linux.mountLabel", "system_u", "$.linux.mountLabel"),
        ("linux.intelRdt", {"closID": "x"}, "$.linux.intelRdt"),
        ("windows", {"layerFolders": ["x"]}, "$.windows"),
        ("linux.namespaces.5", {"type": "future"}, "$.linux.namespaces[5]"),
        ("process.capabilities.bounding", ["CAP_KILL", "CAP_NEW"], "$.process.capabilities.bounding[1]"),
        ("linux.resources.unified", {"io.max": "x"}, "$.linux.resources.unified['io.max']"),
        (
            "linux.resources.devices.1",
            {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"},
            "$.linux.resources.devices[1]",
        ),
    ],
)
def test_transform_of_a_meaningless_field_drops_it_with_a_note(path: str, value: object, where: str) -> None:
    result = plan(edited(path, value))

    assert [note.json_path for note in result.dropped] == [where]
    assert where in str(result.dropped[0])
    reference = plan(sample())
    assert "CAP_NEW" not in str(result.spec)
    assert result.spec["linux"]["namespaces"] == reference.spec["linux"]["namespaces"]
    assert result.spec["linux"]["resources"].get("unified", {}) == {}
    assert result.spec["linux"]["resources"]["devices"] == reference.spec["linux"]["resources"]["devices"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hooks", {}),
        ("hooks", {"prestart": [], "poststop": None}),
        ("linux.seccomp", None),
        ("linux.mountLabel", ""),
        ("windows", None),
        ("extra", None),
    ],
)
def test_transform_of_an_empty_field_says_nothing(path: str, value: object) -> None:
    assert plan(edited(path, value)).dropped == ()


def test_transform_places_namespaces_in_the_guest() -> None:
    linux = plan(edited("hostname", "box")).spec["linux"]

    assert linux["namespaces"] == [
        {"type": "pid"},
        {"type": "ipc"},
        {"type": "uts"},
        {"type": "mount"},
        {"type": "network", "path": "/run/strato/netns"},
        {"type": "cgroup"},
    ]


def test_transform_for_a_member_joins_the_sandbox_s_namespaces() -> None:
    context = replace(CONTEXT, sandbox_member=True, guest_namespaces={"ipc": "/run/strato/ipc"})

    result = plan(edited("linux.namespaces.1.path", "/proc/7/ns/ipc"), context)

    assert {"type": "ipc", "path": "/run/strato/ipc"} in result.spec["linux"]["namespaces"]


def test_transform_takes_docker_s_placeholder_for_a_new_network() -> None:
    assert plan(edited("linux.namespaces.4.path", "/proc/0/ns/net")).netns_path is None


def test_transform_keeps_devices_of_the_guest_s_kernel_only() -> None:
    devices = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 438},
        {"path": "/dev/nul2", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/pipe", "type": "p"},
    ]

    kept = plan(edited("linux.devices", devices)).spec["linux"]["devices"]

    assert [device["path"] for device in kept] == ["/dev/net/tun", "/dev/nul2", "/dev/pipe"]


@pytest.mark.parametrize("container_id", ["", "a/b", "..", ".hidden", "a\0", "a" * 129, "-x", "a b"])
def test_transform_of_a_bad_container_id_is_an_error(container_id: str) -> None:
    with pytest.raises(SpecError):
        plan(sample(), replace(CONTEXT, container_id=container_id))


def test_guest_process_of_an_exec_drops_labels() -> None:
    process, dropped = guest_process({**sample()["process"], "selinuxLabel": "x"})

    assert process == sample()["process"]
    assert [note.json_path for note in dropped] == ["$.process.selinuxLabel"]


def test_guest_process_without_args_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"\$\.process\.args"):
        guest_process({"cwd": "/", "user": {}})
