"""Log lines from before logging is imported; in processes of their own, because they can wait only once."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[3]


def printed(code: str) -> list[str]:
    """The lines of a program's stderr, which is its log."""
    beginning = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]\nfrom shim import early_log\n"
    command = [sys.executable, "-c", beginning + "log = early_log.EarlyLogger('shim.test')\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_lines_wait_for_logging_and_keep_their_order_time_and_fields() -> None:
    early, late = printed(
        "log.warning('port %d is odd', 7, extra=early_log.fields(path='/x'))\n"
        "assert 'logging' not in sys.modules\n"
        "import time; time.sleep(0.01)\n"
        "from shim import log as real; real.set_up('info')\n"
        "import logging; logging.getLogger('shim.test').info('later')\n"
    )

    assert early.endswith('level=warning msg="port 7 is odd" path=/x')
    assert late.endswith('level=info msg="later"')
    assert early.split()[0] < late.split()[0]  # both begin with their time


def test_lines_below_the_level_are_dropped_when_the_level_is_known() -> None:
    lines = printed(
        "log.debug('quiet'); log.error('loud')\nfrom shim import log as real; real.set_up('warning')\n"
    )

    assert [line.partition("msg=")[2] for line in lines] == ['"loud"']


def test_logger_logs_at_once_when_logging_is_set_up() -> None:
    lines = printed(
        "from shim import log as real; real.set_up('info')\n"
        "log.debug('hidden'); early_log.set_level('debug'); log.debug('shown')\n"
    )

    assert [line.partition("msg=")[2] for line in lines] == ['"shown"']


def test_error_that_was_kept_tells_its_traceback() -> None:
    lines = printed(
        "try:\n    {}['nothing']\nexcept KeyError as error:\n    log.error('failed', exc_info=error)\n"
        "from shim import log as real; real.set_up('info')\n"
    )

    assert len(lines) == 1
    assert "Traceback" in lines[0]
    assert "KeyError: 'nothing'" in lines[0]
