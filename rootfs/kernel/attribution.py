"""Whose is this object? From the kernel's object files to the fragments that asked for them.

The kernel's makefiles say which CONFIG symbol builds an object (`obj-$(CONFIG_EXT4_FS) += ext4.o`), of what
parts it is made (`ext4-y := balloc.o ...`), or which symbol opens a whole folder; the fragments say who
asked for a symbol. What no fragment names, because it is always there or another option pulled it in,
is charged to `core`. `initcalls.json` and `sizes.json` of a built kernel come from here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tools.progress import capture

from .config import OFF, Fragment

CORE = "core"

# include/linux/init.h: __initcall_name(prefix, __iid, id) with __initcall_id() built on KBUILD_MODNAME.
_INITCALL = re.compile(
    r"(?P<path>[^:]+\.o):\S* \S __initcall__kmod_\S+?__\d+_\d+_"
    r"(?P<function>\w+?)(?:early|rootfs|con|[0-7]s?)$"
)
_SIZE = re.compile(r"\s*(?P<text>\d+)\s+(?P<data>\d+)\s+(?P<bss>\d+)\s+\d+\s+\S+\s+(?P<path>\S+\.o) \(ex ")
_RULE = re.compile(
    r"^(?P<name>[\w-]+)-(?:\$\(CONFIG_(?P<symbol>\w+)\)|y|objs)\s*[+:]?=\s*(?P<targets>.*)$", re.M
)


class Makefiles:
    """Which CONFIG symbol builds which object of a source tree."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """`texts` maps a folder ("fs/ext4", "" for the top) to the text of its Makefile."""
        # Folder and object name (without .o) or sub-folder -> symbols, and part -> whole.
        self._symbols: dict[tuple[str, str], list[str]] = {}
        self._wholes: dict[tuple[str, str], str] = {}
        for folder, text in texts.items():
            self._read(folder, text)

    @classmethod
    def of_tree(cls, tree: Path) -> "Makefiles":
        """Read all makefiles of a kernel source tree."""
        return cls(
            {
                path.parent.relative_to(tree).as_posix().removeprefix("."): path.read_text(errors="replace")
                for name in ("Makefile", "Kbuild")
                for path in tree.rglob(name)
            }
        )

    def symbols_of(self, path: str) -> Iterator[str]:
        """Symbols that guard an object file, the nearest first: its own, its whole's, its folders'."""
        place = PurePosixPath(path)
        folder, name = self._folder(place), place.stem
        for _ in range(3):
            yield from self._symbols.get((folder, name), ())
            if (folder, name) not in self._wholes:
                break
            name = self._wholes[folder, name]
        for parent in place.parents:
            if parent.name:
                yield from self._symbols.get((self._folder(parent), parent.name), ())

    @staticmethod
    def _folder(path: PurePosixPath) -> str:
        return path.parent.as_posix().removeprefix(".")

    def _read(self, folder: str, text: str) -> None:
        for rule in _RULE.finditer(text.replace("\\\n", " ")):
            for target in rule["targets"].split("#")[0].split():
                if target.startswith("$"):
                    continue
                # "obj-$(CONFIG_X) += sub/": a rule for a folder; "sub/a.o" names an object below it.
                place = PurePosixPath(folder, target)
                key = (self._folder(place), place.name.removesuffix(".o"))
                if rule["symbol"]:
                    self._symbols.setdefault(key, []).append(rule["symbol"])
                if rule["name"] not in ("obj", "lib"):
                    self._wholes[key] = rule["name"]


class Attribution:
    """Objects to fragments for one set of fragments."""

    def __init__(self, makefiles: Makefiles, fragments: Sequence[Fragment]) -> None:
        self._makefiles = makefiles
        self._asked = {
            symbol: fragment.name
            for fragment in fragments
            for symbol, value in fragment.options.items()
            if value != OFF
        }

    def owner(self, path: str) -> str:
        """The fragment of an object file (path relative to the source tree), or `core`."""
        symbols = self._makefiles.symbols_of(path)
        return next((self._asked[symbol] for symbol in symbols if symbol in self._asked), CORE)


def measure(
    tree: Path, objects: Path, fragments: Sequence[Fragment]
) -> tuple[dict[str, str], dict[str, int]]:
    """Initcall function to fragment, and fragment to bytes (text, data, bss), of a built kernel."""
    attribution = Attribution(Makefiles.of_tree(tree), fragments)
    # A thin archive of every object that is linked, with paths relative to the object tree.
    archive = objects / "vmlinux.a"
    # The tools print members of a thin archive with the archive's folder before them.
    prefix = f"{objects}/"
    owners = {
        function: attribution.owner(path.removeprefix(prefix))
        for path, function in initcalls(capture(["nm", "-A", archive]))
    }
    sizes: Counter[str] = Counter()
    for path, size in object_sizes(capture(["size", archive])):
        sizes[attribution.owner(path.removeprefix(prefix))] += size
    return owners, dict(sizes)


def initcalls(listing: str) -> Iterable[tuple[str, str]]:
    """Object path and function of every initcall in the output of `nm -A vmlinux.a`."""
    for line in listing.splitlines():
        if match := _INITCALL.search(line.removeprefix("vmlinux.a:")):
            yield match["path"].rpartition("vmlinux.a:")[2], match["function"]


def object_sizes(listing: str) -> Iterable[tuple[str, int]]:
    """Object path and bytes in memory of every line in the output of `size vmlinux.a`."""
    for line in listing.splitlines():
        if match := _SIZE.match(line):
            yield match["path"], sum(int(match[part]) for part in ("text", "data", "bss"))
