"""Running commands with progress, prerequisites, version texts, the lock files."""

from pathlib import Path

import pytest

from tools import layout, prerequisites, venv
from tools.errors import CommandError, PrerequisiteError
from tools.lock import strip_hosts
from tools.prerequisites import Toolchain, parse_version
from tools.progress import capture, run
from tools.testtools import link, upstream_version

pytestmark = pytest.mark.unit


def test_run_failure_shows_last_lines_and_a_command_to_paste(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        run(["sh", "-c", "echo one; echo 'two words'; exit 3"], log=tmp_path / "log", cwd=tmp_path)

    message = str(caught.value)
    assert "status 3" in message
    assert f"(cd {tmp_path} && sh -c 'echo one; echo '\"'\"'two words'\"'\"'; exit 3')" in message
    assert message.endswith("one\ntwo words\n")


def test_run_failure_does_not_show_output_of_earlier_commands(tmp_path: Path) -> None:
    run(["echo", "earlier"], log=tmp_path / "log")
    with pytest.raises(CommandError) as caught:
        run(["false"], log=tmp_path / "log")

    assert "earlier" not in str(caught.value)
    assert "earlier" in (tmp_path / "log").read_text()


def test_run_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Cannot start 'no-such-program': No such file"):
        run(["no-such-program"], log=tmp_path / "log")


def test_capture_failure_carries_standard_error() -> None:
    with pytest.raises(CommandError, match="broken"):
        capture(["sh", "-c", "echo broken >&2; exit 1"])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cargo 1.95.0 (f2d3ce0bd 2026-03-21)", (1, 95, 0)),
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.26 linux/amd64", (1, 26, 0)),
    ],
)
def test_parse_version(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def test_check_lists_everything_that_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Toolchain("sh", ("-c", "echo sh 0.9"), (1, 0, 0), "get a shell")
    absent = Toolchain("no-such-compiler", (), (2, 1, 0), "invent it")
    monkeypatch.setattr(prerequisites, "TOOLCHAINS", (old, absent))

    with pytest.raises(PrerequisiteError) as caught:
        prerequisites.check()

    assert "sh is 0.9.0, older than 1.0.0: get a shell" in str(caught.value)
    assert "no-such-compiler >= 2.1.0 is not on PATH: invent it" in str(caught.value)


@pytest.mark.parametrize(
    ("debian", "upstream"),
    [("1.6.20~ds1-1+deb12u3", "1.6.20"), ("1.1.5+ds1-1+deb12u1", "1.1.5"), ("2:2.1.9-1", "2.1.9")],
)
def test_upstream_version(debian: str, upstream: str) -> None:
    assert upstream_version(debian) == upstream


def test_link_replaces_an_older_link_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("file")
    link(tmp_path / "one", tmp_path / "place")
    link(tmp_path / "two", tmp_path / "place")

    assert (tmp_path / "place").readlink() == tmp_path / "two"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_strip_hosts_removes_every_line_that_names_an_index() -> None:
    pin = "attrs==1 \\\n    --hash=sha256:00\n"

    assert strip_hosts("--index-url https://example.org/simple\n--trusted-host example.org\n" + pin) == pin


@pytest.mark.parametrize("lock", [venv.LOCK, venv.RUNTIME_LOCK])
def test_lock_files_pin_with_hashes_and_name_no_host(lock: Path) -> None:
    text = lock.read_text()
    pins = [line for line in text.splitlines() if "==" in line]

    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    assert "--index-url" not in text


def test_make_help_lists_every_target() -> None:
    makefile = (layout.CHECKOUT / "Makefile").read_text()
    phony = makefile.partition(".PHONY:")[2].partition("\n\n")[0].replace("\\\n", " ").split()

    listing = capture(["make", "-s", "-C", layout.CHECKOUT, "help"])

    listed = {line.split()[0] for line in listing.splitlines() if line.startswith("  ")}
    assert listed == set(phony)
