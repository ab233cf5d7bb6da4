"""strato-vmm's command line, log and exit report."""

import os
from pathlib import Path

import pytest

from vmm.__main__ import main
from vmm.errors import ConfigError, HostError, chain_text
from vmm.exit_report import ExitCode, ExitKind, ExitReport, read
from vmm.log import Level, Log

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config"],
        ["--confg", "x"],
        ["--config", "x", "--qmp-fd", "1", "--qmp-path", "y"],
        ["--config", "x", "--qmp-fd", "one"],
        ["--config", "x", "--log-level", "loud"],
    ],
)
def test_wrong_command_line_ends_with_usage(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.CONFIG
    assert "usage: strato-vmm" in capfd.readouterr().err


def test_absent_configuration_ends_with_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--config=/nonexistent/vm.json"]) == ExitCode.CONFIG
    assert "/nonexistent/vm.json cannot be read" in capfd.readouterr().err


def test_help_lists_every_option_and_status(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capfd.readouterr().out
    for word in ("--config", "--qmp-fd", "--qmp-path", "--log-level", "exit.json"):
        assert word in output


def test_every_kind_of_end_has_an_exit_status() -> None:
    codes = {kind: ExitReport(kind, "").code for kind in ExitKind}

    assert codes[ExitKind.QUIT] == codes[ExitKind.GUEST_SHUTDOWN] == 0
    assert ExitCode.INTERNAL not in codes.values()


def test_exit_report_reads_back(tmp_path: Path) -> None:
    report = ExitReport(ExitKind.GUEST_PANIC, "Why", "tail \ufffd\n")

    report.write(tmp_path)

    assert read(tmp_path) == report
    assert [entry.name for entry in tmp_path.iterdir()] == ["exit.json"]


def test_log_line_holds_level_message_and_quoted_fields() -> None:
    read_end, write_end = os.pipe()
    log = Log(Level.INFO, write_end)
    log.debug("hidden")
    log.warn("two\nlines \x1b[31m", name="a b", empty="", number=1, message="m")
    os.close(write_end)

    assert os.read(read_end, 4096) == b'warn two | lines ?[31m name="a b" empty="" number=1 message=m\n'
    os.close(read_end)


def test_log_without_reader_harms_nobody() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    log = Log(Level.INFO, write_end)

    log.info("unheard")
    log.info("unheard")
    os.close(write_end)


def test_chain_of_causes_is_one_line() -> None:
    error = HostError("Backend is dead")
    error.__cause__ = ConfigError("boot.kernel", "Missing")

    assert chain_text(error) == "Backend is dead: boot.kernel: Missing"
