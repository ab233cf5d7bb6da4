"""The cases of the differential file-system tests: scripts for the C programs in `guest/`.

A `Case` is a name and the calls made in an empty folder of its own (see guest/script.c for the words).
No case says what a call must give: that is what the comparison of two servers, and of the host, decides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KINDS = ("file", "dir", "fifo", "block", "char", "sock", "link")
USER, GROUP = 65534, 65533
OWNER = f"as {USER}:{GROUP}"
MEMBER = f"as {USER - 2}:{GROUP - 2}:{GROUP},77"
STRANGER = f"as {USER - 4}:{GROUP - 4}"


@dataclass(frozen=True)
class Case:
    """Calls that belong together."""

    name: str
    lines: tuple[str, ...]


def case(name: str, *lines: str | Iterable[str]) -> Case:
    """A case of lines and of lists of lines."""
    flat: list[str] = []
    for line in lines:
        flat += [line] if isinstance(line, str) else line
    return Case(name, tuple(flat))


def make(kind: str, name: str, mode: int = 0o644) -> str:
    """The call that makes an entry of a kind."""
    match kind:
        case "file":
            return f"create {name} 0{mode:o}"
        case "dir":
            return f"mkdir {name} 0{mode | 0o111:o}"
        case "link":
            return f"symlink nowhere {name}"
        case "block" | "char":
            return f"mknod {name} {kind} 0{mode:o} 1 7"
    return f"mknod {name} {kind} 0{mode:o} 0 0"


def drop(kind: str, name: str) -> str:
    """The call that removes an entry of a kind."""
    return f"{'rmdir' if kind == 'dir' else 'unlink'} {name}"


def script(cases: Sequence[Case]) -> str:
    """The text that guest/script.c obeys."""
    return "".join(f"## {entry.name}\n" + "".join(f"{line}\n" for line in entry.lines) for entry in cases)


def name_lines(cases: Sequence[Case]) -> dict[int, tuple[str, str]]:
    """Case and call by the number of their line in the script."""
    found = {}
    number = 0
    for entry in cases:
        number += 1
        for line in entry.lines:
            number += 1
            found[number] = (entry.name, line)
    return found
