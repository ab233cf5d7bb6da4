import json
import os
from pathlib import Path

import pytest

from shim.errors import SpecError
from shim.oci import bundle

from .samples import sample

pytestmark = pytest.mark.unit


def test_load_reads_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(sample()))

    assert bundle.load(tmp_path) == sample()


def test_load_without_config_json_names_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"There is no .*/config\.json"):
        bundle.load(tmp_path)


def test_load_of_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")

    with pytest.raises(SpecError, match="not a regular file"):
        bundle.load(tmp_path)


def test_load_of_a_huge_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (bundle.CONFIG_SIZE_MAX + 1))

    with pytest.raises(SpecError, match="longer than"):
        bundle.load(tmp_path)


def test_load_of_the_largest_file_reads_it_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}".ljust(bundle.CONFIG_SIZE_MAX))

    assert bundle.load(tmp_path) == {}
