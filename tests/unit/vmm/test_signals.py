"""Ends by a signal, in words."""

import signal

import pytest

from vmm.signals import killed_by

pytestmark = pytest.mark.unit


def test_end_by_a_signal_is_told_by_its_name() -> None:
    assert killed_by(signal.SIGKILL) == "was killed by SIGKILL"
    assert killed_by(signal.SIGRTMIN + 3) == f"was killed by signal {signal.SIGRTMIN + 3}"


def test_forbidden_system_call_is_told_with_where_to_look() -> None:
    assert "forbidden system call" in killed_by(signal.SIGSYS)
    assert "1326" in killed_by(signal.SIGSYS)
