"""Rust's format and lint, both workspaces. Target folders are in the cache, so that a second run is quick."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.framework.runtime import CHECKOUT
from tools.cache import Cache
from tools.native import rustc_version

pytestmark = pytest.mark.style
WORKSPACES = ("vmm/native", "guest-agent")
# System calls, C ABIs, mappings of guest memory and what KVM shares: nothing else is a reason to be here.
MAY_CONTAIN_UNSAFE = {
    "vmm/native/abi",
    "vmm/native/devices",
    "vmm/native/holder",
    "vmm/native/jail",
    "vmm/native/launch",
    "vmm/native/machine",
    "vmm/native/plumbing",
    "vmm/native/proof",
    "vmm/native/sys",
    "vmm/native/vhost-user",
    "vmm/native/virtio",
    "guest-agent",
}
# Of those, the ones that deny it but in modules that say why they need it.
DENY_UNSAFE = {
    "vmm/native/devices",
    "vmm/native/jail",
    "vmm/native/machine",
    "vmm/native/vhost-user",
    "vmm/native/virtio",
}


def cargo(workspace: str, *arguments: str, target: Path | None = None) -> None:
    """Runs cargo in a workspace. Raises AssertionError with its words when it fails."""
    env = dict(os.environ)
    if target is not None:
        env["CARGO_TARGET_DIR"] = str(target)
    done = subprocess.run(
        ["cargo", *arguments], cwd=CHECKOUT / workspace, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workspace", WORKSPACES)
def test_rust_is_formatted(workspace: str) -> None:
    cargo(workspace, "fmt", "--all", "--check")


def test_fuzz_targets_are_locked_like_the_rest() -> None:
    cargo("vmm/native/fuzz", "fmt", "--check")
    # A crate that a device core began to need is missing there.
    cargo("vmm/native/fuzz", "metadata", "--locked", "--format-version=1")


@pytest.mark.parametrize("workspace", WORKSPACES)
def test_clippy_has_nothing_to_say(workspace: str) -> None:
    inputs = {"checkout": str(CHECKOUT), "workspace": workspace, "rustc": rustc_version()}
    with Cache().workspace(f"clippy-{workspace.replace('/', '-')}", inputs) as target:
        cargo(workspace, "clippy", "--locked", "--all-targets", "--", "-D", "warnings", target=target)


def _crates() -> dict[str, Path]:
    """The crates of all workspaces, by their paths in the checkout."""
    crates = {}
    for workspace in WORKSPACES:
        manifest = tomllib.loads((CHECKOUT / workspace / "Cargo.toml").read_text(encoding="utf-8"))
        for member in manifest.get("workspace", {}).get("members", ["."]):
            folder = CHECKOUT / workspace / member
            crates[str(folder.relative_to(CHECKOUT))] = folder
    return crates


def test_crates_without_need_forbid_unsafe_code() -> None:
    crates = _crates()
    assert crates.keys() >= MAY_CONTAIN_UNSAFE
    for name in crates.keys() - MAY_CONTAIN_UNSAFE:
        roots = [*crates[name].glob("src/lib.rs"), *crates[name].glob("src/main.rs")]
        assert roots != []
        missing = [
            str(root) for root in roots if "#![forbid(unsafe_code)]" not in root.read_text(encoding="utf-8")
        ]
        assert missing == []


def test_crates_whose_matter_it_is_not_deny_unsafe_code_in_most_modules() -> None:
    for name in DENY_UNSAFE:
        root = (CHECKOUT / name / "src/lib.rs").read_text(encoding="utf-8")
        assert "\n#![deny(unsafe_code)]\n" in root, name


def test_crates_that_may_contain_unsafe_code_do() -> None:
    def contains(folder: Path) -> bool:
        return any("unsafe {" in path.read_text(encoding="utf-8") for path in (folder / "src").rglob("*.rs"))

    crates = _crates()
    assert [name for name in sorted(MAY_CONTAIN_UNSAFE) if not contains(crates[name])] == []


def test_machine_names_architectures_in_their_folders_only() -> None:
    sources = CHECKOUT / "vmm/native/machine/src"
    words = re.compile(
        r"x86|cpuid|kvmclock|lapic|ioapic|irqchip|tss_?addr|kvm_exit_(io|shutdown)\b|msrs?\b|\brip\b",
        re.IGNORECASE,
    )
    found = []
    for path in sorted(sources.rglob("*.rs")):
        if {"arch", "tests"}.isdisjoint(path.relative_to(sources).parts):
            code = [line.split("//")[0] for line in path.read_text(encoding="utf-8").splitlines()]
            found += [f"{path.relative_to(sources)}: {line.strip()}" for line in code if words.search(line)]
    assert found == []


@pytest.mark.parametrize("workspace", WORKSPACES)
def test_unsafe_blocks_say_why_they_are_safe(workspace: str) -> None:
    missing = []
    for path in sorted((CHECKOUT / workspace).rglob("*.rs")):
        if "target" in path.parts:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            code = line.split("//")[0]
            opens_block = "unsafe {" in code or "unsafe impl" in code
            if opens_block and not _explained(lines, number):
                missing.append(f"{path.relative_to(CHECKOUT)}:{number + 1}")
    assert missing == []


def _explained(lines: list[str], number: int) -> bool:
    # The comment stands directly above the statement that holds the block, which may have begun some lines
    # before.
    return any("SAFETY" in line for line in lines[max(0, number - 8) : number + 1])
