"""Log lines that containerd can show, on descriptors that must not block."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

import pytest

from shim import log

pytestmark = pytest.mark.unit


def record(message: str, level: int = logging.INFO, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("shim", level, "", 0, message, None, None)
    made.created = 1_700_000_000.5
    made.fields = values
    return made


def test_line_is_logrus_text() -> None:
    line = log.LogrusFormatter().format(record("VM started", pid=7, path="/a b"))

    assert line == 'time="2023-11-14T22:13:20.500000000Z" level=info msg="VM started" pid=7 path="/a b"'


def test_line_hostile_text_stays_one_line() -> None:
    line = log.LogrusFormatter().format(record('a"b\nc\x1b[31m', logging.WARNING))

    assert line.endswith('level=warning msg="a\\"b\\nc\\x1b[31m"')


def test_full_pipe_drops_the_line_and_does_not_block() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    handler = log.DescriptorHandler(writing)
    handler.setFormatter(log.LogrusFormatter())

    for _ in range(200):
        handler.emit(record("x" * 100))

    assert handler.dropped > 0
    lines = os.read(reading, 65536).splitlines()
    assert all(line.startswith(b"time=") and line.endswith(b'"') for line in lines)
    os.close(reading)
    os.close(writing)


def test_closed_reader_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = log.DescriptorHandler(writing)

    handler.emit(record("nobody listens"))

    assert handler.dropped == 1
    os.close(writing)


def test_file_stays_bounded_and_keeps_the_latest(tmp_path: Path) -> None:
    handler = log.BoundedFileHandler(tmp_path / "shim.log")
    handler.setFormatter(log.LogrusFormatter())

    for number in range(20_000):
        handler.emit(record(f"line {number} " + "x" * 80))

    files = [tmp_path / "shim.log", tmp_path / "shim.log.1"]
    assert sum(path.stat().st_size for path in files) <= log.FILE_LIMIT
    assert "line 19999 " in files[0].read_text()


def test_files_keep_the_lines_of_the_vmm_apart(tmp_path: Path) -> None:
    before = {logger: list(logger.handlers) for logger in (logging.getLogger(), logging.getLogger(log.VMM))}
    try:
        log.add_files(tmp_path / "shim.log", tmp_path / "vmm.log")

        logging.getLogger("shim.sandbox").error("of the shim")
        logging.getLogger(log.VMM).error("of the vmm")
    finally:
        for logger, handlers in before.items():
            logger.handlers[:] = handlers

    assert [line.partition("msg=")[2] for line in (tmp_path / "shim.log").read_text().splitlines()] == [
        '"of the shim"'
    ]
    assert [line.partition("msg=")[2] for line in (tmp_path / "vmm.log").read_text().splitlines()] == [
        '"of the vmm"'
    ]
