"""Fixtures of the native tests: a pump, fifos, and proof that nothing is left open."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.sys import Pump


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """Every test closes what it has opened."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def open_descriptors() -> set[str]:
    """Return the numbers and targets of this process's descriptors."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


@pytest.fixture
def pump(no_descriptor_left: None) -> Iterator[Pump]:
    with Pump() as pump:
        yield pump


class Descriptors:
    """Closes at the end what a test has opened and not closed."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def own(self, *fds: int) -> None:
        self._open.extend(fds)

    def pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self.own(*ends)
        return ends

    def fifo(self, path: Path, flags: int) -> int:
        if not path.exists():
            os.mkfifo(path)
        fd = os.open(path, flags | os.O_CLOEXEC)
        self.own(fd)
        return fd

    def close(self, *fds: int) -> None:
        for fd in fds:
            self._open.remove(fd)
            os.close(fd)

    def close_all(self) -> None:
        self.close(*self._open.copy())


@pytest.fixture
def fds(no_descriptor_left: None) -> Iterator[Descriptors]:
    descriptors = Descriptors()
    yield descriptors
    descriptors.close_all()
