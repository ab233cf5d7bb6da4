"""Fixtures of the differential tests."""

from pathlib import Path

import pytest

from .workbench import PROGRAMS, compile_program


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """The programs of `guest/` by name."""
    return {name: compile_program(name) for name in PROGRAMS}
