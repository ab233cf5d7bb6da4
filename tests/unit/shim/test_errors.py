"""Errors as text and as status."""

from __future__ import annotations

import pytest

from shim.errors import Code, HostError, NotFoundError, SandboxError, describe, status_of

pytestmark = pytest.mark.unit


def chained(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


def test_describe_chain_is_told_once_outermost_first() -> None:
    error = chained(SandboxError("VM failed"), chained(HostError("No kernel"), OSError("No such file")))

    assert describe(error) == "VM failed: No kernel: No such file"


def test_describe_cause_that_is_told_already_is_left_out() -> None:
    assert (
        describe(chained(SandboxError("VM failed: No kernel"), HostError("No kernel")))
        == "VM failed: No kernel"
    )


def test_describe_cycle_ends() -> None:
    error = SandboxError("VM failed")

    assert describe(chained(error, error)) == "VM failed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("x"), Code.NOT_FOUND),
        (TimeoutError("x"), Code.DEADLINE_EXCEEDED),
        (KeyError("x"), Code.UNKNOWN),
    ],
)
def test_status_code_of_each_kind(error: Exception, code: Code) -> None:
    assert status_of(error)[0] is code
