"""Rust's own tests of both workspaces: parsers, rings, the vhost-user shell, exits, streams."""

import pytest

from tests.style.test_rust import cargo
from tools.cache import Cache
from tools.native import rustc_version

pytestmark = pytest.mark.native


def run_tests(workspace: str, *selection: str) -> None:
    """Runs `cargo test` with a target folder that stays in the cache."""
    inputs = {"workspace": workspace, "rustc": rustc_version()}
    with Cache().workspace(f"test-{workspace.replace('/', '-')}", inputs) as target:
        cargo(workspace, "test", "--locked", "--quiet", *selection, target=target)


def test_agent_passes_its_own_tests() -> None:
    run_tests("guest-agent")


def test_native_crates_pass_their_own_tests() -> None:
    run_tests("vmm/native", "--workspace")


@pytest.mark.full
def test_each_rule_of_each_threads_filter_is_needed() -> None:
    run_tests("vmm/native", "-p", "strato-proof", "--test", "confinement", "--", "--ignored")
