"""Programs that the tests and the demo run against, at pinned versions and never installed on the machine.

Each is a cache entry with a `bin` folder, linked as `build/test-tools/<name>-<version>`.
"""

import lzma
import os
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import debian, layout
from .cache import Cache
from .progress import capture, run, step


@dataclass(frozen=True)
class GoTool:
    """Programs installed by `go install`: package paths with their versions."""

    name: str
    version: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class DebianTool:
    """Programs out of a Debian package: `binaries` are their places in it.

    `suite` names another Debian suite, whose version is whatever it has; None means the machine's own.
    """

    name: str
    package: str
    binaries: tuple[str, ...]
    suite: str | None = None


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"

GO_TOOLS = (
    GoTool(
        "containerd",
        "2.3.4",
        (
            f"{_CONTAINERD}/containerd@v2.3.4",
            f"{_CONTAINERD}/ctr@v2.3.4",
            f"{_CONTAINERD}/containerd-shim-runc-v2@v2.3.1",
        ),
    ),
    GoTool(
        "cni-plugins",
        "1.9.0",
        tuple(
            f"{_CNI}/{plugin}@v1.9.0"
            for plugin in ("main/bridge", "main/loopback", "ipam/host-local", "meta/portmap")
        ),
    ),
)

_CONTAINERD_FILES = ("usr/bin/containerd", "usr/bin/ctr", "usr/bin/containerd-shim-runc-v2")

DEBIAN_TOOLS = (
    DebianTool("containerd", "containerd", _CONTAINERD_FILES),
    DebianTool("runc", "runc", ("usr/sbin/runc",)),
)

# The distribution's kernel with all its modules, for the tests' machines that are more than the light board:
# several queues over PCI, and the test host of the KVM lab. It is in the package that this one depends on.
DEBIAN_KERNEL = "linux-image-cloud-amd64"

# Only for `make test-full`: further containerd releases.
FULL_TOOLS = (
    DebianTool("containerd", "containerd", _CONTAINERD_FILES, suite="trixie"),
    DebianTool("containerd", "containerd", _CONTAINERD_FILES, suite="sid"),
)


def ensure(cache: Cache, *, full: bool = False) -> None:
    """Install all test tools into the cache and link them. Raises ToolError."""
    entries = {f"{tool.name}-{tool.version}": _go_entry(cache, tool) for tool in GO_TOOLS}
    for tool in (*DEBIAN_TOOLS, *(FULL_TOOLS if full else ())):
        version, entry = debian.retry_with_fresh_lists(partial(_debian_entry, cache, tool))
        entries[f"{tool.name}-{version}"] = entry
    version, entry = debian.retry_with_fresh_lists(partial(_debian_kernel_entry, cache))
    entries[f"debian-kernel-{version}"] = entry
    layout.TEST_TOOLS.mkdir(parents=True, exist_ok=True)
    if not full:
        # What test-full linked stays: those versions do no harm here and were expensive.
        entries = {**_linked_extras(entries), **entries}
    for place in layout.TEST_TOOLS.iterdir():
        if place.is_symlink() and place.name not in entries:
            place.unlink()
    for name, entry in entries.items():
        link(entry, layout.TEST_TOOLS / name)


def link(target: Path, place: Path) -> None:
    """Make `place` a symbolic link to `target`, replacing an older one in one step."""
    if place.is_symlink() and place.readlink() == target:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.new")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(place)


def upstream_version(debian_version: str) -> str:
    """The upstream part of a Debian version: '1.6.20~ds1-1+deb12u3' gives '1.6.20'."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", debian_version)
    return match[1] if match else debian_version


def _linked_extras(entries: dict[str, Path]) -> dict[str, Path]:
    return {
        path.name: path.readlink()
        for path in layout.TEST_TOOLS.iterdir()
        if path.is_symlink() and path.exists() and path.name not in entries
    }


def _go_entry(cache: Cache, tool: GoTool) -> Path:
    def build(output: Path) -> None:
        for package in tool.packages:
            with step(f"Go: install {package.rpartition('/')[2]}"):
                run(
                    ["nice", "go", "install", "-trimpath", "-ldflags=-s -w", package],
                    log=layout.LOGS / "go.log",
                    env={"GOBIN": str(output / "bin"), "GOFLAGS": ""},
                )

    inputs = {"packages": "\n".join(tool.packages), "go": capture(["go", "version"]).strip()}
    return cache.entry(tool.name, inputs, build)


def _debian_entry(cache: Cache, tool: DebianTool) -> tuple[str, Path]:
    apt = debian.PrivateAptRoot(cache.root / "apt", tool.suite) if tool.suite else None
    found = apt.candidate(tool.package) if apt else debian.candidate(tool.package)

    def build(output: Path) -> None:
        package = apt.fetch(found, output) if apt else debian.fetch(found, output)
        debian.unpack(package, output / "package")
        (output / "bin").mkdir()
        for binary in tool.binaries:
            shutil.move(output / "package" / binary, output / "bin" / Path(binary).name)
        shutil.rmtree(output / "package")
        package.unlink()

    inputs = {"package": found.package, "version": found.version, "files": "\n".join(tool.binaries)}
    return upstream_version(found.version), cache.entry(tool.name, inputs, build)


def _debian_kernel_entry(cache: Cache) -> tuple[str, Path]:
    found = debian.candidate(debian.first_dependency(DEBIAN_KERNEL))

    def build(output: Path) -> None:
        package = debian.fetch(found, output)
        unpacked = output / "package"
        debian.unpack(package, unpacked)
        shutil.move(next((unpacked / "boot").glob("vmlinuz-*")), output / "vmlinuz")
        (output / "lib").mkdir()
        shutil.move(unpacked / "lib/modules", output / "lib/modules")
        shutil.rmtree(unpacked)
        package.unlink()
        _index_modules(output)

    # The form is that of the entry: a change of what `build` makes is a change of it.
    inputs = {"package": found.package, "version": found.version, "form": "vmlinuz, lib/modules indexed"}
    return upstream_version(found.version), cache.entry("debian-kernel", inputs, build)


def _index_modules(root: Path) -> None:
    """Do for modules below `root` what the package's script does for those of the machine: depmod."""
    for module in (root / "lib/modules").rglob("*.ko.xz"):  # Debian 13 compresses them; not all who load can
        module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()
    release = next((root / "lib/modules").iterdir()).name
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # others than root have no sbin on PATH
    run(["depmod", "-b", root, release], log=layout.LOGS / "apt.log", env={"PATH": path})
