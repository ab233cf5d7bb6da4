"""docs/vm-config.md says what the dataclasses say."""

import tomllib
from pathlib import Path

import pytest

from tools.vm_config_reference import PAGE, render
from vmm.config import VmConfig
from vmm.decoding import decode

pytestmark = pytest.mark.unit


def test_committed_page_is_the_rendered_one() -> None:
    assert PAGE.read_text() == render(), "run python -m tools.vm_config_reference"


def test_example_of_the_page_is_accepted() -> None:

    example = render().split("```toml\n")[1].split("```")[0]
    document = {"name": "vm", "runtime_dir": "/run/vm", **tomllib.loads(example)}

    assert decode(VmConfig, document, base=Path("/srv")).memory.size_mib == 512
