"""`make install` and `make uninstall`: the built runtime beside a system containerd.

    PREFIX/lib/strato/            native programs, kernel, guest image, manifest
    PREFIX/lib/strato/python/     packages shim and vmm, and the pinned packages they need
    PREFIX/bin/                   launchers for the system's Python
    /etc/strato/config.toml       only where there is none

Everything goes below DESTDIR when one is given, with paths inside files as if it were not there. The manifest
lists what was written; uninstall removes exactly that, and folders that are empty then. A configuration
that was changed since is kept.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import launchers, layout, venv
from .errors import InstallError
from .progress import capture, run, say, step

PRODUCTS = (
    "strato-launch",
    "strato-holder",
    "strato-vhost-device",
    "libstrato_sys.so",
    "libstrato_vmm.so",
    "vhost-device-vsock",
    "vmlinux",
    "bzImage",
    "initramfs.img",
)
PACKAGES = ("shim", "vmm")
_MANIFEST = "install-manifest.json"
_CONFIG = Path("/etc/strato/config.toml")
# Sources of the native parts live inside the vmm package; tests of dependencies are of no use here.
_NOT_INSTALLED = shutil.ignore_patterns("native", "__pycache__", "*.pyc", "*.proto")


@dataclass(frozen=True)
class Destination:
    """Where to install. `python` is the launchers' interpreter; `destdir` None means the machine itself."""

    prefix: Path
    destdir: Path | None
    python: Path

    def __post_init__(self) -> None:
        if not self.prefix.is_absolute():
            raise InstallError(f"PREFIX {str(self.prefix)!r} is not absolute; write it from the root")

    @property
    def library(self) -> Path:
        """The runtime's folder as installed programs see it."""
        return self.prefix / "lib" / "strato"

    def real(self, path: Path) -> Path:
        """Where a path of the installed system is now."""
        return path if self.destdir is None else self.destdir / path.relative_to("/")


class _Writer:
    """Copies files to their destination and remembers them for the manifest."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self.files: dict[str, str] = {}
        self.directories: list[str] = []

    def make_directory(self, path: Path) -> None:
        missing = [folder for folder in (path, *path.parents) if not self._destination.real(folder).is_dir()]
        for folder in reversed(missing):
            self._destination.real(folder).mkdir()
            self.directories.append(str(folder))

    def copy(self, source: Path, path: Path, mode: int | None = None) -> None:
        self.write(source.read_bytes(), path, source.stat().st_mode & 0o755 if mode is None else mode)

    def write(self, content: bytes, path: Path, mode: int) -> None:
        self.make_directory(path.parent)
        real = self._destination.real(path)
        # A running shim may have the old file mapped: it is replaced, never written into.
        partial = real.with_name(f".{real.name}.new")
        partial.write_bytes(content)
        partial.chmod(mode)
        partial.replace(real)
        self.files[str(path)] = hashlib.sha256(content).hexdigest()

    def copy_tree(self, source: Path, path: Path) -> None:
        for file in sorted(_files(source)):
            self.copy(file, path / file.relative_to(source))


def install(destination: Destination) -> None:
    """Install the runtime as built. Raises InstallError when it is not built, ToolError when pip fails."""
    unbuilt = [name for name in PRODUCTS if not (layout.LIBRARY / name).is_file()]
    if unbuilt:
        raise InstallError(f"Not built: {', '.join(unbuilt)}; run 'make build' first")
    version = _python_version(destination.python)
    staging = layout.BUILD / "install"
    shutil.rmtree(staging, ignore_errors=True)
    _stage_packages(staging, version)
    _compile(staging, destination)
    with step(f"Install into {destination.real(destination.prefix)}"):
        previous = _read_manifest(destination) if _manifest_path(destination).is_file() else None
        writer = _Writer(destination)
        library = destination.library
        for name in PRODUCTS:
            writer.copy(layout.LIBRARY / name, library / name)
        writer.copy_tree(staging, library / "python")
        for name, module in launchers.PROGRAMS.items():
            text = launchers.launcher_text(module, destination.python, [library / "python"])
            writer.write(text.encode(), destination.prefix / "bin" / name, 0o755)
        if not destination.real(_CONFIG).exists():
            writer.write(_default_config(), _CONFIG, 0o644)
        elif previous is not None and str(_CONFIG) in previous["files"]:
            writer.files[str(_CONFIG)] = previous["files"][str(_CONFIG)]
        _finish(destination, writer, previous)
    say(f"Installed {len(writer.files)} files; 'make uninstall' with the same PREFIX removes them")


def uninstall(destination: Destination) -> None:
    """Remove what the manifest lists. Raises InstallError when there is no manifest."""
    manifest = _read_manifest(destination)
    with step(f"Uninstall from {destination.real(destination.prefix)}"):
        for name, digest in manifest["files"].items():
            real = destination.real(Path(name))
            if name == str(_CONFIG) and real.is_file() and _digest(real) != digest:
                say(f"Kept {real}: it was changed")
                continue
            real.unlink(missing_ok=True)
        _manifest_path(destination).unlink()
        for name in reversed(manifest["directories"]):
            real = destination.real(Path(name))
            for cache in real.glob("__pycache__"):
                shutil.rmtree(cache)
            if real.is_dir() and not any(real.iterdir()):
                real.rmdir()


def _finish(destination: Destination, writer: _Writer, previous: dict[str, dict[str, str]] | None) -> None:
    """Remove files of an older installation that this one does not have, and write the manifest."""
    directories = list(writer.directories)
    if previous is not None:
        for name in set(previous["files"]) - set(writer.files):
            destination.real(Path(name)).unlink(missing_ok=True)
        directories = [*previous["directories"], *directories]
    manifest = {"files": writer.files, "directories": directories}
    _manifest_path(destination).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _stage_packages(staging: Path, python_version: str) -> None:
    """Collect the packages for the interpreter that will run them, which need not be this one."""
    log = layout.LOGS / "install.log"
    with step(f"Install: collect the pinned packages for Python {python_version}"):
        run(
            [
                *(layout.VENV_PYTHON, "-m", "pip", "install", "--disable-pip-version-check"),
                *("--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:"),
                *("--implementation", "cp", "--python-version", python_version),
                *("--target", staging, "-r", venv.RUNTIME_LOCK),
            ],
            log=log,
        )
    shutil.rmtree(staging / "bin", ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(layout.CHECKOUT / package, staging / package, ignore=_NOT_INSTALLED)


def _compile(staging: Path, destination: Destination) -> None:
    """Make bytecode that is used without a look at the source: an installation changes as a whole."""
    installed = destination.library / "python"
    run(
        [
            *(destination.python, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
            *("-s", staging, "-p", installed, staging),
        ],
        log=layout.LOGS / "install.log",
    )


def _python_version(python: Path) -> str:
    if not python.is_file():
        raise InstallError(f"System Python {python} does not exist; name another with INSTALL_PYTHON=")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    text = capture([python, "-I", "-S", "-c", code]).strip()
    major, minor = map(int, text.split("."))
    if (major, minor) < (3, 11):
        raise InstallError(
            f"System Python {python} is {text}; Strato needs 3.11, name another with INSTALL_PYTHON="
        )
    return text


def _default_config() -> bytes:
    example = layout.CHECKOUT / "docs" / "config.toml"
    if example.is_file():
        return example.read_bytes()
    return b"# Configuration of Strato; every setting has a default. See docs/configuration.md.\n"


def _manifest_path(destination: Destination) -> Path:
    return destination.real(destination.library / _MANIFEST)


def _read_manifest(destination: Destination) -> dict[str, dict[str, str]]:
    path = _manifest_path(destination)
    try:
        manifest: dict[str, dict[str, str]] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InstallError(
            f"No installation in {destination.real(destination.prefix)}: {path} is missing"
        ) from error
    return manifest


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
