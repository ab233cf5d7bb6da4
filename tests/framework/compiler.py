"""Small static C programs for guests, compiled once and kept in the cache.

In the KVM lab, where a compiler takes half a minute, they are there already: `delegation.py` has them made
before it starts the test host.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.cache import Cache, digest_files
from tools.progress import capture

_SOURCES = Path(__file__).parent
_INIT_FLAGS = ("-static", "-Os", "-Wall", "-Werror", "-Wno-unused-result")
_PROGRAM_FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-s")


def guest_init() -> Path:
    """The init of the VM tests' guest. Raises subprocess.CalledProcessError."""
    return _compiled(_SOURCES / "guest_init.c", _INIT_FLAGS)


def guest_program(name: str) -> Path:
    """A program of framework/guest_programs. Raises subprocess.CalledProcessError."""
    return _compiled(_SOURCES / "guest_programs" / f"{name}.c", _PROGRAM_FLAGS)


def compile_everything() -> None:
    """Make all of them, for a place where that is slow. Raises subprocess.CalledProcessError."""
    guest_init()
    for source in sorted((_SOURCES / "guest_programs").glob("*.c")):
        guest_program(source.stem)


def _compiled(source: Path, flags: Sequence[str]) -> Path:
    def build(output: Path) -> None:
        subprocess.run(["gcc", *flags, "-o", output / source.stem, source], check=True)

    inputs = {
        "source": digest_files([source], source.parent),
        "flags": " ".join(flags),
        "compiler": capture(["gcc", "-dumpfullversion"]).strip(),
    }
    return Cache().entry("guest-program", inputs, build) / source.stem
