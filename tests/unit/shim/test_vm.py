"""The shim's view of strato-vmm: the level of each line of its log."""

from __future__ import annotations

import logging

import pytest

from shim import config, log, vm
from vmm.log import Level

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("debug spawn name=qemu", logging.DEBUG, "spawn name=qemu"),
        ("info VM started", logging.INFO, "VM started"),
        ("warn killed: it did not end in time", logging.WARNING, "killed: it did not end in time"),
        ("error guest kernel panicked", logging.ERROR, "guest kernel panicked"),
        ("Traceback (most recent call last):", logging.INFO, "Traceback (most recent call last):"),
        ("", logging.INFO, ""),
    ],
)
def test_line_of_the_vmm_keeps_its_level(
    line: str, level: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, log.VMM):
        vm.forward(line)

    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, text)]


def test_every_configured_level_is_one_of_the_vmms() -> None:
    configured = next(
        setting.metadata["choices"]
        for setting in config.ShimSettings.__dataclass_fields__.values()
        if setting.name == "log_level"
    )

    assert set(log.VMM_LEVELS) == set(configured)
    assert set(log.VMM_LEVELS.values()) == {level.name.lower() for level in Level}
