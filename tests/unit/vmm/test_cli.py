"""The strato command, apart from running VMs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim import config_files as shim_config_files
from shim.state import process_entry
from vmm import VERSION
from vmm.cli import main, sandboxes
from vmm.cli.sandboxes import Follower
from vmm.cli.vm import unescape
from vmm.engines import probe

pytestmark = pytest.mark.unit


NOBODY = {"pid": 4194305, "start_time": 7}


def write_state(root: Path, name: str, **changes: Any) -> Path:
    directory = root / name
    (directory / "vmm").mkdir(parents=True)
    state = {
        "version": 1,
        "id": f"sandbox-{name}",
        "namespace": "default",
        "created_at": 1767225600.5,
        "shim": {"pid": 11, "start_time": 5},
        "vmm": process_entry(os.getpid()),
        "containers": {f"container-{name}": {"status": "running"}},
    }
    (directory / "state.json").write_text(json.dumps({**state, **changes}))
    return directory


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"strato {VERSION}\n"


def test_ps_lists_sandboxes_and_their_containers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path, "a")
    write_state(tmp_path, "b", vmm=NOBODY)
    write_state(tmp_path, "c", vmm=None)
    write_state(tmp_path, "d", vmm={"pid": os.getpid(), "start_time": 7})

    assert main(["ps", "--state-root", str(tmp_path)]) == 0

    header, first, *dead = capsys.readouterr().out.splitlines()
    assert header.startswith("SANDBOX")
    assert "sandbox-a" in first
    assert "2026-01-01T00:00:00+00:00" in first
    assert "container-a (running)" in first
    assert "(dead)" not in first
    assert ["4194305 (dead)" in dead[0], "- (dead)" in dead[1], "(dead)" in dead[2]] == [True] * 3


def test_ps_as_json_is_one_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path, "a")

    main(["ps", "--json", "--state-root", str(tmp_path)])

    document = json.loads(capsys.readouterr().out)
    assert (document["sandbox_id"], document["alive"]) == ("sandbox-a", True)


def test_ps_without_state_root_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--state-root", str(tmp_path / "none")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("changes", [{"version": 2}, {"containers": []}, {"vmm": {"pid": "x"}}])
def test_ps_tells_of_states_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    write_state(tmp_path, "a", **changes)
    write_state(tmp_path, "b")

    main(["ps", "--state-root", str(tmp_path)])

    captured = capsys.readouterr()
    assert "sandbox-b" in captured.out
    assert "a/state.json cannot be read" in captured.err


def test_state_root_is_the_one_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {name: tmp_path / name for name in ("main", "first", "last")}
    for name, root in roots.items():
        write_state(root, name)
    (tmp_path / "config.d").mkdir()
    (tmp_path / "s.toml").write_text(f'[shim]\nstate_root = "{roots["main"]}"\n')
    (tmp_path / "config.d/10.toml").write_text(f'[shim]\nstate_root = "{roots["first"]}"\n')
    (tmp_path / "config.d/20.toml").write_text(f'[shim]\nstate_root = "{roots["last"]}"\n')
    (tmp_path / "config.d/30.toml").write_text("[vm]\n")
    monkeypatch.setenv("STRATO_CONFIG", str(tmp_path / "s.toml"))

    assert [str(path) for path in sandboxes.config_files()] == shim_config_files.files()
    assert (str(sandboxes.CONFIG_FILE), sandboxes.CONFIG_VARIABLE) == (
        shim_config_files.DEFAULT_FILE,
        shim_config_files.ENVIRONMENT,
    )
    assert main(["ps"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["sandbox-last"]


def test_logs_prints_the_wanted_log(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    directory = write_state(tmp_path, "a")
    (directory / "vmm.log").write_text("info started\n")
    (directory / "vmm" / "console.log").write_bytes(b"\xff console\n")

    assert main(["logs", "container-a", "--state-root", str(tmp_path), "--source", "vmm"]) == 0
    assert capsysbinary.readouterr().out == b"info started\n"
    main(["logs", "sandbox-a", "--state-root", str(tmp_path)])
    assert b"==> console <==\n\xff console\n" in capsysbinary.readouterr().out


@pytest.mark.parametrize(("name", "words"), [("nobody", "does not exist"), ("sandbox", "several sandboxes")])
def test_logs_of_no_or_several_sandboxes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    write_state(tmp_path, "a")
    write_state(tmp_path, "b")

    assert main(["logs", name, "--state-root", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_console_of_a_dead_sandbox_prints_what_there_is(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    directory = write_state(tmp_path, "a", vmm=NOBODY)
    (directory / "vmm" / "console.log").write_bytes(b"last words\n")

    assert main(["console", "sandbox-a", "--state-root", str(tmp_path)]) == 0
    assert capsysbinary.readouterr().out == b"last words\n"


def test_follower_reads_on_when_the_file_is_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    with Follower(path) as follower:
        assert follower.read() == b""
        path.write_bytes(b"one")
        assert follower.read() == b"one"
        with path.open("ab") as stream:
            stream.write(b"two")
        path.rename(tmp_path / "console.log.1")
        path.write_bytes(b"three")

        assert follower.read() == b"twothree"


@pytest.mark.parametrize(
    ("typed", "escaped", "expected"),
    [
        (b"plain", False, (b"plain", False, False)),
        (b"a\x01", False, (b"a", True, False)),
        (b"x", True, (b"", False, True)),
        (b"a\x01xb", False, (b"a", False, True)),
        (b"\x01\x01", False, (b"\x01", False, False)),
        (b"\x01b", False, (b"\x01b", False, False)),
    ],
)
def test_escape_leaves_only_with_x(typed: bytes, escaped: bool, expected: tuple[bytes, bool, bool]) -> None:
    assert unescape(typed, escaped) == expected


def test_vm_plan_prints_slots_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my-vm.toml"
    disk = '[[drives]]\nid = "d0"\npath = "disk"\n'
    file.write_text(f'engine = "tcg"\n[boot]\nkernel = "k"\ncmdline = "mine=1"\n{disk}')

    assert main(["vm", "plan", str(file)]) == 0

    output = capsys.readouterr().out
    assert output.startswith("engine tcg\nmachine my-vm\n")
    assert f"{tmp_path}/disk" in output
    assert "mine=1" in output


def test_vm_plan_needs_no_engine_that_runs_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path / "kvm")
    file = tmp_path / "my-vm.toml"
    file.write_text('engine = "kvm"\n[boot]\nkernel = "k"\n')

    assert main(["vm", "plan", str(file)]) == 0

    output = capsys.readouterr().out
    assert output.startswith("engine kvm\nmachine my-vm\n")
    assert "reboot=a" in output


def test_wrong_config_file_is_a_usage_error_with_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vm.json"
    file.write_text('{"boot": {"kernel": "k"}, "cpus": 1}')

    assert main(["vm", "plan", str(file)]) == 2
    assert "cpus: Unknown field" in capsys.readouterr().err


def test_doctor_names_what_is_missing_and_how_to_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATO_LIBRARY_DIR", str(tmp_path))
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path / "kvm")

    assert main(["doctor"]) == 1

    output = capsys.readouterr().out
    assert output.startswith(f"engine   tcg: {tmp_path}/kvm does not exist")
    assert "let its host offer nested virtualisation" in output
    assert f"{tmp_path}/vmlinux does not exist" in output
    assert "-> build it: make build" in output
