"""Debian packages, with a fake apt."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tools import debian
from tools.errors import CommandError, DownloadError, PrerequisiteError

pytestmark = pytest.mark.unit


class _FakeApt:
    """Answers queries from what a test sets, and remembers the commands that were run."""

    def __init__(self) -> None:
        self.installed = "gcc\tinstalled\nbison\tconfig-files\n"
        self.policy = "flex:\n  Installed: (none)\n  Candidate: 2.6.4-8\n"
        self.commands: list[list[str]] = []
        self.failing: list[str] = []

    def capture(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
        return self.installed if argv[0] == "dpkg-query" else self.policy

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        command = [str(part) for part in argv]
        self.commands.append(command)
        if any(word in command for word in self.failing):
            self.failing.clear()
            raise CommandError("404")


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> _FakeApt:
    """A fake apt on a machine where this process is root."""
    fake = _FakeApt()
    monkeypatch.setattr(debian, "capture", fake.capture)
    monkeypatch.setattr(debian, "run", fake.run)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return fake


def test_install_asks_only_for_what_is_missing(apt: _FakeApt) -> None:
    debian.install({"gcc": "compiler", "bison": "parser", "flex": "scanner"})

    assert apt.commands == [["apt-get", "install", "-y", "--no-install-recommends", "bison", "flex"]]


def test_install_nothing_missing_runs_nothing(apt: _FakeApt) -> None:
    debian.install({"gcc": "compiler"})

    assert apt.commands == []


def test_install_old_lists_are_updated_once(apt: _FakeApt) -> None:
    apt.failing = ["flex"]

    debian.install({"flex": "scanner"})

    assert [command[1] for command in apt.commands] == ["install", "update", "install"]


def test_install_not_root_names_the_command(apt: _FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    with pytest.raises(PrerequisiteError, match="sudo apt-get install -y --no-install-recommends flex"):
        debian.install({"flex": "scanner"})


def test_candidate_reads_the_version(apt: _FakeApt) -> None:
    assert debian.candidate("flex") == debian.Download("flex", "2.6.4-8")


def test_candidate_absent_package_is_an_error_after_an_update(apt: _FakeApt) -> None:
    apt.policy = ""

    with pytest.raises(PrerequisiteError, match="flex is not offered"):
        debian.candidate("flex")

    assert apt.commands == [["apt-get", "update"]]


def test_retry_download_that_vanished_is_looked_up_anew(apt: _FakeApt, tmp_path: Path) -> None:
    (tmp_path / "flex_2.6.4-8_amd64.deb").write_text("")
    apt.failing = ["flex=2.6.4-8"]

    found = debian.retry_with_fresh_lists(lambda: debian.fetch(debian.candidate("flex"), tmp_path))

    assert found.name == "flex_2.6.4-8_amd64.deb"
    assert [command[-1] for command in apt.commands] == ["flex=2.6.4-8", "update", "flex=2.6.4-8"]


def test_retry_second_failure_is_reported(apt: _FakeApt, tmp_path: Path) -> None:
    def never() -> None:
        raise DownloadError("gone")

    with pytest.raises(DownloadError, match="gone"):
        debian.retry_with_fresh_lists(never)


def test_private_root_keeps_away_from_the_machines_own(apt: _FakeApt, tmp_path: Path) -> None:
    apt.policy = "containerd:\n  Candidate: 2.1.9+ds1-5\n"
    root = debian.PrivateAptRoot(tmp_path, "sid")

    assert root.candidate("containerd").version == "2.1.9+ds1-5"
    root.candidate("containerd")

    assert len(apt.commands) == 1  # the second look-up uses the lists of the first
    update = apt.commands[0]
    for setting in ("Dir::State", "Dir::Cache", "Dir::Etc::sourcelist", "Dir::Etc::sourceparts"):
        assert any(word.startswith(f"{setting}={tmp_path}/sid/") for word in update)
    assert (tmp_path / "sid" / "sources.list").read_text().endswith(" sid main\n")


def test_first_dependency_is_what_a_meta_package_stands_for(apt: _FakeApt) -> None:
    apt.policy = "newest\n  Candidate: 6.1\n  Depends: exactly-6.1.0-1\n  Depends: other\n"

    assert debian.first_dependency("newest") == "exactly-6.1.0-1"


def test_first_dependency_of_a_package_without_any_is_an_error(apt: _FakeApt) -> None:
    with pytest.raises(PrerequisiteError, match="flex depends on nothing"):
        debian.first_dependency("flex")
