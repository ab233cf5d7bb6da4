"""Fixtures of the tests that boot VMs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import guest_image
from tests.framework.vm import VmFactory, vm_factory


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest image whose init obeys the console (see framework/guest_init.c)."""
    return guest_image.build(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def vms(guest: Path) -> Iterator[VmFactory]:
    """Makes VMs and proves that they have left nothing."""
    with vm_factory(guest) as factory:
        yield factory
