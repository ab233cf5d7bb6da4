import pytest

from shim.errors import SpecError, SpecRefusedError

from .samples import plan, sample, with_mount

pytestmark = pytest.mark.unit


def test_mounts_of_the_guest_keep_their_options() -> None:
    spec = sample()

    assert plan(spec).spec["mounts"][:7] == spec["mounts"][:7]


def test_bind_becomes_a_volume() -> None:
    result = plan(sample())

    (volume,) = result.volumes
    assert (volume.index, volume.source, volume.recursive, volume.readonly) == (0, "/srv/data", True, False)
    assert (volume.propagation, volume.json_path) == ("rprivate", "$.mounts[7].source")
    assert result.spec["mounts"][7] == {
        "destination": "/data",
        "type": "bind",
        "source": "/run/strato/shares/volumes/hello/0",
        "options": ["rbind", "rw"],
    }


@pytest.mark.parametrize(
    ("options", "recursive", "readonly", "propagation", "guest_options"),
    [
        (["bind"], False, False, "rprivate", ["bind"]),
        (["rbind", "ro"], True, True, "rprivate", ["rbind", "ro"]),
        (["rbind", "ro", "rw"], True, False, "rprivate", ["rbind", "ro", "rw"]),
        (["rbind", "rro", "rslave"], True, True, "rslave", ["rbind", "rro", "rslave"]),
        (
            ["rbind", "nosuid", "slave", "private"],
            True,
            False,
            "private",
            ["rbind", "nosuid", "slave", "private"],
        ),
    ],
)
def test_bind_options_reach_host_and_guest(
    options: list[str], recursive: bool, readonly: bool, propagation: str, guest_options: list[str]
) -> None:
    result = plan(with_mount(type="bind", source="/srv/x", options=options))

    volume = result.volumes[1]
    assert (volume.recursive, volume.readonly) == (recursive, readonly)
    assert volume.propagation == propagation
    assert volume.options == tuple(options)
    assert result.spec["mounts"][8]["options"] == guest_options


def test_bind_by_option_alone_is_a_bind() -> None:
    result = plan(with_mount(type="none", source="/srv/x", options=["rbind"]))

    assert result.volumes[1].source == "/srv/x"
    assert result.spec["mounts"][8]["type"] == "bind"


def test_bind_source_is_relative_to_the_bundle() -> None:
    result = plan(with_mount(type="bind", source="files", options=["rbind"]))

    assert result.volumes[1].source == "/run/bundle/hello/files"


def test_bind_with_unknown_option_drops_it_with_a_note() -> None:
    result = plan(with_mount(type="bind", source="/srv/x", options=["rbind", "z"]))

    assert [note.json_path for note in result.dropped] == ["$.mounts[8].options[1]"]
    assert result.spec["mounts"][8]["options"] == ["rbind"]


def test_bind_of_dev_null_is_the_guest_s() -> None:
    result = plan(with_mount(type="bind", source="/dev/null", options=["bind", "ro"]))

    assert len(result.volumes) == 1
    assert result.spec["mounts"][8]["source"] == "/dev/null"


def test_bind_of_the_cgroup_tree_is_the_guest_s() -> None:
    result = plan(with_mount(type="bind", source="/sys/fs/cgroup/", options=["rbind", "ro", "rprivate"]))

    assert result.spec["mounts"][8]["type"] == "cgroup2"
    assert result.spec["mounts"][8]["options"] == ["ro"]


def test_cgroup_mount_is_version_two() -> None:
    assert plan(with_mount(type="cgroup", source="cgroup")).spec["mounts"][8]["type"] == "cgroup2"


def test_engine_s_shm_becomes_tmpfs() -> None:
    result = plan(with_mount(destination="/dev/shm", type="bind", source="/run/c/9a/shm", options=["rbind"]))

    assert result.spec["mounts"][8]["type"] == "tmpfs"
    assert len(result.volumes) == 1


def test_relative_destination_is_below_the_root() -> None:
    assert plan(with_mount(destination="a//b/", type="tmpfs")).spec["mounts"][8]["destination"] == "/a/b"


@pytest.mark.parametrize(
    ("mount", "where"),
    [
        ({"type": "overlay"}, "$.mounts[8].type"),
        ({"type": "ext4", "source": "/dev/sda1"}, "$.mounts[8].type"),
        ({}, "$.mounts[8].type"),
        ({"type": "bind", "source": "/dev/sda"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "/dev"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "//dev/./sda"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "/proc/1/root"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "/sys"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "/sys/fs/bpf"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "/x", "options": ["rbind", "rshared"]}, "$.mounts[8].options[1]"),
        ({"type": "bind", "source": "/x", "options": ["ridmap"]}, "$.mounts[8].options[0]"),
        ({"type": "tmpfs", "options": ["tmpcopyup"]}, "$.mounts[8].options[0]"),
        ({"type": "bind", "source": "/x", "destination": "/proc"}, "$.mounts[8].destination"),
        ({"type": "bind", "source": "/x", "destination": "/proc/sys"}, "$.mounts[8].destination"),
        ({"type": "tmpfs", "destination": "/"}, "$.mounts[8].destination"),
        ({"type": "bind", "source": "/x", "uidMappings": [{"size": 1}]}, "$.mounts[8].uidMappings[0]"),
    ],
)
def test_mount_that_cannot_be_is_refused_by_path(mount: dict[str, object], where: str) -> None:
    with pytest.raises(SpecRefusedError) as caught:
        plan(with_mount(**mount))

    assert caught.value.json_path == where


def test_unknown_mount_type_names_the_value_and_the_known_types() -> None:
    with pytest.raises(SpecRefusedError, match=r"\$\.mounts\[8\]\.type: .*'nfs' is none of .*tmpfs.*bind"):
        plan(with_mount(type="nfs"))


@pytest.mark.parametrize(
    ("mount", "where"),
    [
        ({"type": "bind"}, "$.mounts[8].source"),
        ({"type": "bind", "source": "/a/../dev/sda"}, "$.mounts[8].source"),
        ({"type": "tmpfs", "destination": "/a/../b"}, "$.mounts[8].destination"),
        ({"type": "tmpfs", "destination": ""}, "$.mounts[8].destination"),
        ({"type": "tmpfs", "destination": "/a", "options": ["ro,nosuid"]}, "$.mounts[8].options[0]"),
    ],
)
def test_malformed_mount_is_an_error_by_path(mount: dict[str, object], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(with_mount(**mount))

    assert caught.value.json_path == where
    assert not isinstance(caught.value, SpecRefusedError)


@pytest.mark.parametrize("destination", ["/proc/cpuinfo", "/proc/uptime"])
def test_lxcfs_files_may_cover_proc(destination: str) -> None:
    result = plan(with_mount(destination=destination, type="bind", source="/x", options=["bind"]))

    assert result.spec["mounts"][8]["destination"] == destination
