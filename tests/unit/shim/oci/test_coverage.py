from pathlib import Path

import pytest

from shim.oci import hooks
from shim.oci.coverage import FIELDS, Kind, Verdict, render_markdown

pytestmark = pytest.mark.unit

_PAGE = Path(__file__).parents[4] / "docs" / "oci-coverage.md"


def test_page_is_generated_from_the_table() -> None:
    assert _PAGE.read_text() == render_markdown(), "Run: python -m shim.oci.coverage > docs/oci-coverage.md"


def test_every_field_stands_once_and_below_its_parent() -> None:
    paths = [row.path for row in FIELDS]

    assert len(paths) == len(set(paths))
    parents = {path.rpartition(".")[0].removesuffix("[]") for path in paths} - {""}
    assert parents <= set(paths)


def test_whoever_loses_a_field_is_told_why() -> None:
    silent = [row.path for row in FIELDS if row.verdict is not Verdict.GUEST and not row.reason]

    assert silent == []


def test_only_fields_that_are_not_looked_into_have_kind_any() -> None:
    kept = [
        row.path for row in FIELDS if row.kind is Kind.ANY and row.verdict in (Verdict.GUEST, Verdict.HOST)
    ]

    assert kept == []


def test_hook_kinds_are_those_of_the_specification() -> None:
    assert hooks.names() == (
        *("prestart", "createRuntime", "createContainer"),
        *("startContainer", "poststart", "poststop"),
    )
