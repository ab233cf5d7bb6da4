"""Whose is an initcall? From the name of an init function to the fragment that asked for it.

An initcall's symbol carries the name of its object (`__initcall__kmod_<object>__<n>_<line>_<function><level>`,
include/linux/init.h). The kernel's makefiles say which CONFIG symbol builds that object, and the fragments
say who asked for the symbol. What no fragment names (pulled in by another option, or always there) is
charged to `core`.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.progress import capture

from .config import OFF, Fragment

CORE = "core"

_INITCALL = re.compile(
    r"__initcall__kmod_(?P<object>.+?)__\d+_\d+_(?P<function>.+?)(?P<level>early|rootfs|con|[0-7]s?)$"
)
_RULE = re.compile(r"obj-\$\(CONFIG_(?P<symbol>\w+)\)\s*[+:]?=\s*(?P<targets>.*)")


def initcall_owners(tree: Path, vmlinux: Path, fragments: Sequence[Fragment]) -> dict[str, str]:
    """Map every initcall function of an unstripped vmlinux to the name of its fragment, or to `core`."""
    makefiles = (path.read_text(errors="replace") for path in tree.rglob("Makefile"))
    objects = object_symbols(makefiles)
    asked = {
        symbol: fragment.name
        for fragment in fragments
        for symbol, value in fragment.options.items()
        if value != OFF
    }
    owners = {}
    for function, name in initcalls(capture(["nm", vmlinux])):
        symbols = objects.get(name, ())
        owners[function] = next((asked[symbol] for symbol in symbols if symbol in asked), CORE)
    return owners


def initcalls(symbol_table: str) -> Iterable[tuple[str, str]]:
    """Function and object names of all initcalls in the output of nm."""
    for line in symbol_table.splitlines():
        if match := _INITCALL.match(line.rsplit(" ", 1)[-1]):
            yield match["function"], match["object"]


def object_symbols(makefiles: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map object names, as KBUILD_MODNAME spells them, to the symbols that build them.

    A folder (`obj-$(CONFIG_EXT4_FS) += ext4/`) counts as an object of its own name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in makefiles:
        for match in _RULE.finditer(text.replace("\\\n", " ")):
            for target in match["targets"].split("#")[0].split():
                name = target.removesuffix(".o").rstrip("/").replace("-", "_").replace("/", "_")
                found[name] = (*found.get(name, ()), match["symbol"])
    return found
