"""What the Rust programs are built of: where each crate comes from, under which licence, and that those whose
types cross our borders are there once. Reads cargo's own description of the lock files.
"""

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.framework.runtime import CHECKOUT

pytestmark = pytest.mark.style

WORKSPACES = ("vmm/native", "vmm/native/fuzz", "guest-agent")
TARGET = "x86_64-unknown-linux-gnu"
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"

LICENCES = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}
EXCEPTIONS = {
    # Unchanged and from its source package, so nothing of ours comes under it.
    "pathrs": "MPL-2.0 OR LGPL-3.0-or-later",
    # Its file LICENSE is the MIT licence.
    "rust-criu": None,
}
"""Crates under another licence than those, with what they say; each for a reason."""

ONE_OF_EACH = re.compile(
    r"vm-memory|virtio-.*|vhost|vmm-sys-util|kvm-.*|libc|ttrpc|protobuf|oci-spec|libcontainer"
)


@dataclass(frozen=True)
class Crate:
    """A crate as cargo describes it."""

    name: str
    version: str
    licence: str | None
    source: str | None
    """None for our own."""


def crates(workspace: str) -> list[Crate]:
    """Everything that the lock file of a workspace brings in on our target."""
    words = ["metadata", "--locked", "--format-version=1", f"--filter-platform={TARGET}"]
    done = subprocess.run(
        ["cargo", *words], cwd=CHECKOUT / workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["packages"]
    return [Crate(one["name"], one["version"], one["license"], one["source"]) for one in found]


def allowed(licence: str) -> bool:
    """Whether an SPDX expression can be satisfied: each part of an AND by one alternative of an OR. The older
    form with a slash means OR.
    """
    parts = re.sub(r"[()]", "", re.sub(r" ?/ ?", " OR ", licence)).split(" AND ")
    return all(LICENCES & set(part.split(" OR ")) for part in parts)


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("MIT", True),
        ("MIT/Apache-2.0", True),
        ("MIT OR GPL-3.0-only", True),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("GPL-3.0-only", False),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("MPL-2.0 OR LGPL-3.0-or-later", False),
    ],
)
def test_licence_expressions_are_understood(licence: str, verdict: bool) -> None:
    assert allowed(licence) is verdict


@pytest.mark.parametrize("workspace", WORKSPACES)
def test_crates_come_from_the_registry_under_licences_that_we_know(workspace: str) -> None:
    wrong = [
        one
        for one in crates(workspace)
        if one.source not in (None, CRATES_IO)
        or not (
            (one.name in EXCEPTIONS and EXCEPTIONS[one.name] == one.licence) or allowed(one.licence or "none")
        )
    ]
    assert wrong == []


@pytest.mark.parametrize("workspace", WORKSPACES)
def test_crates_whose_types_cross_our_borders_are_there_once(workspace: str) -> None:
    counts = Counter(one.name for one in crates(workspace))
    assert [name for name, count in counts.items() if count > 1 and ONE_OF_EACH.fullmatch(name)] == []
