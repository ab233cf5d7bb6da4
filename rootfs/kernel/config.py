"""Kernel configuration fragments: reading, merging, and checking what became of them.

Pure functions on text; `rootfs.kernel.build` calls them around the kernel's own `make allnoconfig`.

The rule of the builder: a symbol is off unless a fragment asks for it, and a build whose final
configuration differs from any fragment is an error. Kconfig drops an option silently when a
dependency is missing, and a container feature lost that way would be noticed by a user first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FragmentError, SymbolError

# Values of a boolean or tristate symbol as Kconfig writes them; "n" stands for "is not set".
OFF = "n"

_ASSIGNMENT = re.compile(r"CONFIG_(?P<symbol>[A-Za-z0-9_]+)=(?P<value>.+)")
_UNSET = re.compile(r"# CONFIG_(?P<symbol>[A-Za-z0-9_]+) is not set")

# Security updates bring defences against new processor defects, each a symbol of its own that is off in
# allnoconfig. Those that no fragment names are switched on.
_DEFENCE = "MITIGATION_"


@dataclass(frozen=True)
class Fragment:
    """One topic of the configuration.

    `options` maps a symbol without its CONFIG_ prefix to its value as written in a .config file
    (y, a number, a quoted string), or to `OFF`.
    """

    name: str
    options: Mapping[str, str]


def parse_config(text: str, source: str) -> dict[str, str]:
    """Read the text of a fragment or of a final .config.

    Raises FragmentError for a line that is neither an assignment, an unset mark, a comment nor
    empty, and for a symbol that appears twice. `source` names the file in those errors.
    """
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if match := _ASSIGNMENT.fullmatch(line):
            symbol, value = match["symbol"], match["value"]
        elif match := _UNSET.fullmatch(line):
            symbol, value = match["symbol"], OFF
        elif not line or line.startswith("#"):
            continue
        else:
            raise FragmentError(
                f"Line {number} of {source} is {line!r}; write CONFIG_X=value or '# CONFIG_X is not set'"
            )
        if symbol in options:
            raise FragmentError(f"CONFIG_{symbol} is set twice in {source} (line {number}); remove one")
        options[symbol] = value
    return options


def load_fragments(directory: Path) -> tuple[Fragment, ...]:
    """Read every `*.config` file of a directory, in the order of their names.

    Raises FragmentError when there is none or when one is malformed.
    """
    fragments = tuple(
        Fragment(path.stem, parse_config(path.read_text(), path.name))
        for path in sorted(directory.glob("*.config"))
    )
    if not fragments:
        raise FragmentError(f"No *.config file in {directory}; the kernel needs at least one fragment")
    return fragments


def merge(fragments: Iterable[Fragment]) -> dict[str, str]:
    """Join fragments into one set of options.

    Raises FragmentError when two fragments mention the same symbol: an option belongs to one topic,
    or the cost report could not say whose it is.
    """
    merged: dict[str, str] = {}
    owner: dict[str, str] = {}
    for fragment in fragments:
        for symbol, value in fragment.options.items():
            if symbol in owner:
                raise FragmentError(
                    f"CONFIG_{symbol} is set by fragment {owner[symbol]} and again by {fragment.name}; "
                    "keep it in one"
                )
            owner[symbol] = fragment.name
            merged[symbol] = value
    return merged


def render(options: Mapping[str, str]) -> str:
    """Write options in the form that Kconfig reads (KCONFIG_ALLCONFIG), sorted by symbol."""
    lines = (
        f"# CONFIG_{symbol} is not set" if value == OFF else f"CONFIG_{symbol}={value}"
        for symbol, value in sorted(options.items())
    )
    return "\n".join(lines) + "\n"


def unnamed_defences(fragments: Iterable[Fragment], final: Mapping[str, str]) -> dict[str, str]:
    """The options that switch on every defence of the processor that is off in `final` and in no fragment."""
    named = {symbol for fragment in fragments for symbol in fragment.options}
    return {
        symbol: "y"
        for symbol, value in final.items()
        if symbol.startswith(_DEFENCE) and value == OFF and symbol not in named
    }


def verify(fragments: Sequence[Fragment], final: Mapping[str, str]) -> None:
    """Check that every option of every fragment holds in the final configuration.

    Raises SymbolError that lists all differences with their fragments.
    """
    differences = [
        f"  {fragment.name}: CONFIG_{symbol} wanted {value}, "
        + (f"became {final[symbol]}" if symbol in final else "vanished (unknown, or a dependency is missing)")
        for fragment in fragments
        for symbol, value in fragment.options.items()
        if final.get(symbol, OFF) != value
    ]
    if differences:
        raise SymbolError(
            f"{len(differences)} kernel options did not come out as the fragments ask:\n"
            + "\n".join(differences)
        )


def count_enabled(final: Mapping[str, str]) -> int:
    """Number of symbols that are built in (=y)."""
    return sum(value == "y" for value in final.values())
