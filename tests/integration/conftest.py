"""Fixtures of the tests that boot VMs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import guest_image
from tests.framework.vm import VmFactory, vm_factory

from .guest_scripts import MakeVms, equipped


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest image whose init obeys the console (see framework/guest_init.c)."""
    return guest_image.build(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def vms(guest: Path) -> Iterator[VmFactory]:
    """Makes VMs and proves that they have left nothing."""
    with vm_factory(guest) as factory:
        yield factory


@pytest.fixture
def equipped_vms(tmp_path: Path) -> Iterator[MakeVms]:
    """Makes VMs whose guest has a program; see `guest_scripts.equipped`."""
    with equipped(tmp_path) as make:
        yield make
