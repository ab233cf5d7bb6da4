"""Generated code is what the .proto files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.protos import regenerate

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[3]


def test_regenerating_gives_what_is_committed(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")

    written = regenerate.regenerate(CHECKOUT, tmp_path)

    committed = sorted(
        path.relative_to(CHECKOUT)
        for _, package in regenerate.SOURCES
        for path in (CHECKOUT / package).glob("*.py*")
    )
    assert sorted(written) == committed
    for path in written:
        assert (tmp_path / path).read_bytes() == (CHECKOUT / path).read_bytes(), path
