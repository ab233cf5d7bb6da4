"""The distribution's kernel that `make test-tools` fetched, and its modules in the order in which they load.

Nothing here depends on the modules of the machine itself, which need not have any.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .runtime import TEST_TOOLS, MissingToolError


@dataclass(frozen=True)
class DebianKernel:
    """One unpacked kernel package: `vmlinuz` and `lib/modules/<release>` with depmod's indexes."""

    directory: Path

    @classmethod
    def installed(cls) -> Self:
        """The newest one. Raises MissingToolError."""
        found = sorted(TEST_TOOLS.glob("debian-kernel-*/vmlinuz"))
        if not found:
            raise MissingToolError(f"No debian-kernel in {TEST_TOOLS}; run `make test-tools`")
        return cls(found[-1].parent.resolve())

    @property
    def vmlinuz(self) -> Path:
        """The compressed kernel."""
        return self.directory / "vmlinuz"

    @property
    def module_root(self) -> Path:
        """What belongs at /lib/modules of whoever runs this kernel."""
        return self.directory / "lib/modules"

    def load_order(self, *names: str) -> list[Path]:
        """The files of these modules and of all that they need, each after what it needs itself.

        Raises MissingToolError for a name that this kernel has no module of.
        """
        tree = next(self.module_root.iterdir())
        needs = dependencies((tree / "modules.dep").read_text())
        order: list[str] = []
        for name in names:
            if _plain(name) not in needs:
                raise MissingToolError(
                    f"Kernel {self.directory} has no module {name}; rename it where it is wanted"
                )
            order += [path for path in needs[_plain(name)] if path not in order]
        return [tree / path for path in order]


def dependencies(index: str) -> dict[str, list[str]]:
    """modules.dep by module name: the files to load, the module's own last (depmod writes the nearest need
    first, so its lines are read backwards).
    """
    found = {}
    for line in index.splitlines():
        path, _, needs = line.partition(":")
        found[_plain(Path(path).stem)] = [*reversed(needs.split()), path]
    return found


def _plain(name: str) -> str:
    # The kernel takes '-' and '_' in names of modules for the same; file names have either.
    return name.replace("-", "_")
