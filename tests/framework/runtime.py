"""The runtime under test and where its programs are.

The tests run against Strato by default. `STRATO_TEST_RUNTIME=io.containerd.runc.v2` runs them against runc,
which shows whether a test asks for what containerd's reference runtime does; tests of what only a microVM
does are skipped then.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TEST_TOOLS = CHECKOUT / "build/test-tools"
STRATO = "io.containerd.strato.v2"
RUNC = "io.containerd.runc.v2"


class MissingToolError(Exception):
    """A program the tests need was not installed; `make test` installs them."""


@dataclass(frozen=True)
class Runtime:
    """One containerd runtime by name. `programs` precede everything else on the daemon's PATH."""

    name: str
    programs: tuple[Path, ...]

    @property
    def is_strato(self) -> bool:
        """Whether containers of this runtime live in a microVM of ours."""
        return self.name == STRATO


def runtime_under_test() -> Runtime:
    """The runtime that this run of the tests is about."""
    name = os.environ.get("STRATO_TEST_RUNTIME", STRATO)
    return Runtime(name, (CHECKOUT / "build/bin",))


def tool_directory(name: str) -> Path:
    """The newest installed `build/test-tools/<name>*/bin`. Raises MissingToolError naming the tool."""
    found = sorted(TEST_TOOLS.glob(f"{name}*/bin"))
    if not found:
        raise MissingToolError(f"No {name} in {TEST_TOOLS}; run `make test-tools`")
    return found[-1]


def write_config(path: Path, sections: Mapping[str, Mapping[str, object]]) -> None:
    """Writes a Strato configuration file of one TOML table per section."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _toml(value: object) -> str:
    # JSON's scalars, strings and arrays are TOML as well; a path is a string.
    return json.dumps(str(value) if isinstance(value, Path) else value)
