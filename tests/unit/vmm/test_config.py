"""VmConfig: what is accepted, what is refused, and by which path."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vmm.config import BootConfig, DriveConfig, NetConfig, RngConfig, ShareConfig, VmConfig, VsockConfig
from vmm.decoding import MAX_CONFIG_BYTES, dump, load, parse
from vmm.errors import ConfigError

pytestmark = pytest.mark.unit

MINIMAL: dict[str, Any] = {"name": "vm", "runtime_dir": "/run/vm", "boot": {"kernel": "/k"}}
NET: dict[str, Any] = {"id": "n0", "tap_name": "tap0", "mac": "02:53:54:52:00:00"}


def full() -> VmConfig:
    return VmConfig(
        name="vm",
        runtime_dir=Path("/run/vm"),
        boot=BootConfig(kernel=Path("/k"), initrd=Path("/i"), cmdline="a=b"),
        drives=(DriveConfig(id="d0", path=Path("/d"), readonly=True, serial="s"),),
        nets=(NetConfig(id="n0", tap_fd=5, mac="02:53:54:52:00:00", mtu=1500, link_up=False),),
        vsock=VsockConfig(guest_cid=7, socket=Path("/run/vm/v")),
        shares=(ShareConfig(tag="t", directory=Path("/s")),),
    )


def test_minimal_config_has_the_documented_defaults() -> None:
    config = parse(json.dumps(MINIMAL).encode())

    assert (config.engine, config.board, config.cpu.count, config.memory.size_mib) == (
        "auto",
        "microvm",
        1,
        256,
    )
    assert (config.rng, config.vsock, config.drives) == (RngConfig(), None, ())
    assert config.console.ring_kib == 64


def test_dump_of_full_config_parses_to_an_equal_one() -> None:
    assert parse(dump(full()).encode()) == full()


def test_toml_with_relative_paths_is_relative_to_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('name = "vm"\nruntime_dir = "/run/vm"\n[boot]\nkernel = "sub/k"\n')

    assert load(file).boot.kernel == tmp_path / "sub/k"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"boot": {"kernel": "/k", "kernal": "/k"}}, "boot.kernal"),
        ({"boot": {}}, "boot.kernel"),
        ({"boot": "/k"}, "boot"),
        ({"boot": {"kernel": ""}}, "boot.kernel"),
        ({"boot": {"kernel": "k"}}, "boot.kernel"),
        ({"boot": {"kernel": "/k", "cmdline": "a\nb"}}, "boot.cmdline"),
        ({"name": ""}, "name"),
        ({"name": 1}, "name"),
        ({"engine": "xen"}, "engine"),
        ({"engine": 1}, "engine"),
        ({"board": "standard"}, "board"),
        ({"cpu": {"count": 0}}, "cpu.count"),
        ({"cpu": {"count": 65}}, "cpu.count"),
        ({"cpu": {"count": True}}, "cpu.count"),
        ({"cpu": {"count": "1"}}, "cpu.count"),
        ({"memory": {"size_mib": 31}}, "memory.size_mib"),
        ({"memory": {"size_mib": 1.5}}, "memory.size_mib"),
        ({"memory": {"backend": "file"}}, "memory.file"),
        ({"memory": {"backend": "memfd", "file": "/ram"}}, "memory.file"),
        ({"memory": {"backend": "file", "file": "ram"}}, "memory.file"),
        ({"memory": {"backend": "file", "file": "/ram", "huge_pages": True}}, "memory.huge_pages"),
        ({"memory": {"size_mib": 33, "huge_pages": True}}, "memory.size_mib"),
        ({"balloon": {"statistics_s": -1}}, "balloon.statistics_s"),
        ({"serial": {"log": "serial"}}, "serial.log"),
        ({"spare_slots": 32}, "spare_slots"),
        ({"drives": [{"id": "d", "path": "/d", "limit": {"operations": -1}}]}, "drives[0].limit.operations"),
        ({"rng": 1}, "rng"),
        ({"rng": {"burst_kib": 63}}, "rng.burst_kib"),
        ({"runtime_dir": "relative"}, "runtime_dir"),
        ({"runtime_dir": "/" + "x" * 80}, "runtime_dir"),
        ({"drives": {}}, "drives"),
        ({"drives": [{"id": "d"}]}, "drives[0].path"),
        ({"drives": [{"id": "d,x", "path": "/d"}]}, "drives[0].id"),
        ({"drives": [{"id": "d", "path": "/d", "serial": "x" * 21}]}, "drives[0].serial"),
        ({"drives": [{"id": "d", "path": "/d", "cache": "unsafe"}]}, "drives[0].cache"),
        ({"drives": [{"id": "d", "path": "/d"}, {"id": "d", "path": "/e"}]}, "drives[1].id"),
        ({"nets": [{**NET, "tap_fd": 3}]}, "nets[0]"),
        ({"nets": [{**NET, "tap_name": None}]}, "nets[0]"),
        ({"nets": [{**NET, "tap_name": "a/b"}]}, "nets[0].tap_name"),
        ({"nets": [{**NET, "mac": "03:00:00:00:00:00"}]}, "nets[0].mac"),
        ({"nets": [{**NET, "mac": "2:0:0:0:0:0"}]}, "nets[0].mac"),
        ({"nets": [{**NET, "mtu": 67}]}, "nets[0].mtu"),
        ({"nets": [NET, NET]}, "nets[1].id"),
        ({"vsock": {"guest_cid": 2, "socket": "/v"}}, "vsock.guest_cid"),
        ({"vsock": {"socket": "/" + "v" * 100}}, "vsock.socket"),
        ({"shares": [{"tag": "x" * 37, "directory": "/s"}]}, "shares[0].tag"),
        ({"shares": [{"tag": "t", "directory": "s"}]}, "shares[0].directory"),
        ({"shares": [{"tag": "t", "directory": "/s"}, {"tag": "t", "directory": "/r"}]}, "shares[1].tag"),
        ({"console": {"ring_kib": 0}}, "console.ring_kib"),
    ],
)
def test_wrong_value_is_refused_by_its_path(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps({**MINIMAL, **change}).encode())

    assert caught.value.json_path == path


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"nul", b"\xff", b"[" * 100_000])
def test_config_that_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse(data)


def test_config_beyond_the_size_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger"):
        parse(b" " * (MAX_CONFIG_BYTES + 1))


def test_absent_file_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"/nonexistent/vm\.toml"):
        load(Path("/nonexistent/vm.toml"))


def test_construction_checks_too() -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(full(), name="")

    assert caught.value.json_path == "name"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"console": {"log": "/elsewhere/log"}}, "console.log"),
        ({"serial": {"log": "/run/vms/log"}}, "serial.log"),
        ({"vsock": {"socket": "/run/v"}}, "vsock.socket"),
        ({"programs": {"virtiofsd": "/v"}}, "programs.virtiofsd"),
        ({"jail": {"folders": ["relative"]}}, "jail.folders[0]"),
    ],
)
def test_what_is_out_of_the_jail_is_refused_by_its_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps({**MINIMAL, **changes}).encode())

    assert caught.value.json_path == path


def test_folders_of_the_jail_and_no_jail_allow_what_is_elsewhere() -> None:
    for jail in ({"folders": ["/elsewhere"]}, {"enabled": False}):
        parse(json.dumps({**MINIMAL, "console": {"log": "/elsewhere/log"}, "jail": jail}).encode())
