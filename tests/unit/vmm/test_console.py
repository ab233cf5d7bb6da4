"""The console's ring and log."""

from pathlib import Path

import pytest

from vmm.console import ConsoleLog, ConsoleRing

pytestmark = pytest.mark.unit


def test_ring_keeps_the_last_bytes_and_counts_the_others() -> None:
    ring = ConsoleRing(8)

    for part in (b"abc", b"defgh", b"ij"):
        ring.write(part)

    assert (ring.text(), ring.dropped) == ("cdefghij", 2)


def test_ring_takes_a_write_larger_than_itself() -> None:
    ring = ConsoleRing(4)

    ring.write(b"0123456789")

    assert (ring.text(), ring.dropped) == ("6789", 6)


def test_ring_replaces_what_is_not_text() -> None:
    ring = ConsoleRing(8)

    ring.write(b"\xffok")

    assert ring.text() == "\ufffdok"


def test_log_moves_away_at_half_of_its_limit_and_never_exceeds_it(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = ConsoleLog(path, 100)

    for index in range(100):
        log.write(f"line {index:4}\n".encode())

    log.close()
    older = path.with_name("console.log.1")
    assert path.stat().st_size <= 50
    assert older.stat().st_size <= 50
    assert (older.read_text() + path.read_text()).endswith("line   98\nline   99\n")


def test_log_continues_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("before\n")
    log = ConsoleLog(path, 1000)

    log.write(b"after\n")

    log.close()
    assert path.read_text() == "before\nafter\n"


def test_log_cuts_a_write_that_is_larger_than_its_half(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = ConsoleLog(path, 20)

    log.write(b"0123456789abcdef")

    log.close()
    assert path.read_bytes() == b"6789abcdef"
