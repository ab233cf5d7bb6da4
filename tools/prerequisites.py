"""What a person must have installed before `make` can do the rest: Python, cargo, go.

Everything else is installed by the tools. The versions are the oldest that the lock files and the pinned test
tools accept; the message of a failed check says how to get them.
"""

import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass

from .errors import PrerequisiteError
from .progress import capture, say

MIN_PYTHON = (3, 11)

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Toolchain:
    """A compiler that is found on PATH. `arguments` make it print its version."""

    program: str
    arguments: tuple[str, ...]
    minimum: tuple[int, int, int]
    how_to_get: str


TOOLCHAINS = (
    Toolchain(
        "cargo",
        ("--version",),
        (1, 88, 0),
        "install Rust with rustup (https://rustup.rs), or 'rustup update stable'; Debian 12's own is too old",
    ),
    Toolchain(
        "go",
        ("version",),
        (1, 26, 3),
        "unpack a release of https://go.dev/dl in /usr/local and put /usr/local/go/bin on PATH",
    ),
)


def parse_version(text: str) -> tuple[int, int, int]:
    """The first dotted number in a program's version output. Raises PrerequisiteError without one."""
    match = _VERSION.search(text)
    if match is None:
        raise PrerequisiteError(f"No version number in {text.strip()!r}")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def check() -> None:
    """Check all prerequisites and print what was found.

    Raises PrerequisiteError that lists everything that is missing, not only the first.
    """
    problems = [*_python_problems()]
    found = [f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"]
    for toolchain in TOOLCHAINS:
        wanted = ".".join(map(str, toolchain.minimum))
        if shutil.which(toolchain.program) is None:
            problems.append(f"{toolchain.program} >= {wanted} is not on PATH: {toolchain.how_to_get}")
            continue
        version = parse_version(capture([toolchain.program, *toolchain.arguments]))
        text = ".".join(map(str, version))
        if version < toolchain.minimum:
            problems.append(f"{toolchain.program} is {text}, older than {wanted}: {toolchain.how_to_get}")
        found.append(f"{toolchain.program} {text}")
    if problems:
        raise PrerequisiteError(
            "Prerequisites are missing:\n" + "\n".join(f"  - {line}" for line in problems)
        )
    say(f"Prerequisites: {', '.join(found)}")


def _python_problems() -> list[str]:
    problems = []
    if sys.version_info < MIN_PYTHON:
        problems.append(
            f"Python {sys.version.split()[0]} is older than 3.11: install Debian 12's python3, "
            "or name another one with 'make PYTHON=python3.12 ...'"
        )
    return problems


def has_venv() -> bool:
    """Whether this Python can make virtual environments with pip (on Debian: package python3-venv)."""
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))
