"""From a kernel source archive and fragments to `vmlinux`, `bzImage` and what describes them.

Called by `tools.guest` inside a new cache entry. The work directory is left behind for the caller to
remove. Nothing of the machine (user, host, time) gets into the products, so that the same inputs give
the same bytes.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.errors import CommandError
from tools.progress import capture, run, say, step

from ..errors import KernelBuildError
from .attribution import measure
from .config import Fragment, count_enabled, merge, parse_config, render, unnamed_defences, verify

# Part of the cache key: raise it when this file changes what a build yields.
BUILDER_VERSION = 2

FRAGMENTS = Path(__file__).parent / "fragments"

# Files of our own that are compiled in, at their place in the kernel's tree.
SOURCES = Path(__file__).parent / "sources"

# Bounds the jobs of one build; more gain nothing on the machines this was measured on.
_MAX_JOBS = 16

# KBUILD_BUILD_* end up in the kernel's version string. The time is that of no build in particular.
_ENVIRONMENT = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "strato",
    "KBUILD_BUILD_HOST": "strato",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
    "ARCH": "x86_64",
}


@dataclass(frozen=True)
class KernelFacts:
    """What is worth knowing about a built kernel; stored beside it as kernel.json."""

    release: str
    enabled_symbols: int
    vmlinux_bytes: int
    bzimage_bytes: int


def build_kernel(archive: Path, fragments: Sequence[Fragment], work: Path, output: Path) -> KernelFacts:
    """Build a kernel; `output` gets vmlinux, bzImage, config, System.map, initcalls.json, sizes.json,
    kernel.json.

    `archive` is the linux-source tar. Raises FragmentError, SymbolError and KernelBuildError.
    """
    try:
        tree = _unpack(archive, work)
        objects = work / "objects"
        objects.mkdir()
        final = _configure(tree, objects, fragments, work)
        _compile(tree, objects, work)
        return _collect(tree, objects, final, fragments, output)
    except CommandError as error:
        raise KernelBuildError(f"The guest kernel cannot be built in {work}") from error


def check_configuration(archive: Path, fragments: Sequence[Fragment], work: Path) -> dict[str, str]:
    """Only unpack and configure: the final configuration, verified. Raises as build_kernel does."""
    try:
        tree = _unpack(archive, work)
        objects = work / "objects"
        objects.mkdir()
        return _configure(tree, objects, fragments, work)
    except CommandError as error:
        raise KernelBuildError(f"The guest kernel cannot be configured in {work}") from error


def _unpack(archive: Path, work: Path) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    with step(f"Kernel: unpack {archive.name}"):
        run(["tar", "-xf", archive, "-C", work], log=work / "unpack.log")
    trees = [path for path in work.iterdir() if (path / "Kconfig").is_file()]
    if len(trees) != 1:
        raise KernelBuildError(f"{archive} holds {len(trees)} kernel trees; expected exactly one")
    add_sources(trees[0])
    return trees[0]


def add_sources(tree: Path) -> None:
    """Add the files of SOURCES to a kernel tree. Raises KernelBuildError where the kernel has one already."""
    for source in sorted(SOURCES.rglob("*.c")):
        target = tree / source.relative_to(SOURCES)
        makefile = target.parent / "Makefile"
        if target.exists() or not makefile.is_file():
            raise KernelBuildError(
                f"{source} cannot be added to the kernel: {target.parent} must have a Makefile and no "
                f"{target.name}"
            )
        shutil.copyfile(source, target)
        with makefile.open("a") as file:
            file.write(f"\nobj-y += {target.stem}.o\n")


def _make(tree: Path, objects: Path, work: Path, *targets: str) -> None:
    run(
        ["nice", "make", "-C", tree, f"O={objects}", *targets],
        log=work / "build.log",
        env=_ENVIRONMENT,
    )


def _configure(tree: Path, objects: Path, fragments: Sequence[Fragment], work: Path) -> dict[str, str]:
    # allnoconfig with KCONFIG_ALLCONFIG starts from nothing: whatever no fragment names, and no named
    # symbol selects, is off.
    options = merge(fragments)
    with step("Kernel: configure"):
        final = _merge_into_nothing(tree, objects, options, work)
        if defences := unnamed_defences(fragments, final):
            say(f"Kernel: new defences are switched on: {', '.join(sorted(defences))}")
            final = _merge_into_nothing(tree, objects, {**options, **defences}, work)
    verify(fragments, final)
    return final


def _merge_into_nothing(tree: Path, objects: Path, options: Mapping[str, str], work: Path) -> dict[str, str]:
    wanted = work / "wanted.config"
    wanted.write_text(render(options))
    _make(tree, objects, work, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig")
    return parse_config((objects / ".config").read_text(), ".config")


def _compile(tree: Path, objects: Path, work: Path) -> None:
    jobs = min(len(os.sched_getaffinity(0)), _MAX_JOBS)
    with step(f"Kernel: compile with {jobs} jobs (some minutes)"):
        _make(tree, objects, work, f"-j{jobs}", "vmlinux", "bzImage")


def _collect(
    tree: Path, objects: Path, final: dict[str, str], fragments: Sequence[Fragment], output: Path
) -> KernelFacts:
    owners, sizes = measure(tree, objects, fragments)
    _write_json(output / "initcalls.json", owners)
    _write_json(output / "sizes.json", sizes)
    # The VMM loads segments, not symbols: without them there is less to read at every start.
    run(["strip", "-s", "-o", output / "vmlinux", objects / "vmlinux"], log=objects.parent / "strip.log")
    shutil.copy(objects / "arch/x86/boot/bzImage", output / "bzImage")
    shutil.copy(objects / ".config", output / "config")
    shutil.copy(objects / "System.map", output / "System.map")
    facts = KernelFacts(
        release=(objects / "include/config/kernel.release").read_text().strip(),
        enabled_symbols=count_enabled(final),
        vmlinux_bytes=(output / "vmlinux").stat().st_size,
        bzimage_bytes=(output / "bzImage").stat().st_size,
    )
    _write_json(output / "kernel.json", asdict(facts))
    return facts


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def compiler_version() -> str:
    """The versions of compiler and linker, a part of the cache key."""
    return "\n".join(capture([program, "--version"]).splitlines()[0] for program in ("gcc", "ld", "lz4"))
