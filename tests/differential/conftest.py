"""Fixtures of the differential tests."""

from pathlib import Path

import pytest

from .workbench import compile_programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs of `guest/` by name."""
    return compile_programs(tmp_path_factory.mktemp("programs"))
