"""Debian packages: installed on the machine, or downloaded and unpacked into the cache.

Only what the builds themselves call (compiler, QEMU, ...) is installed. Other packages are fetched and
unpacked without being installed: the kernel's source, and daemons that the tests run privately. Packages
of another Debian suite come through a `PrivateAptRoot`, which never touches the machine's own sources.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import layout
from .errors import CommandError, DownloadError, PrerequisiteError
from .progress import capture, run, say, step

# What `make` installs where it is missing, and why.
BUILD_PACKAGES = {
    "bc": "kernel build",
    "bison": "kernel build",
    "build-essential": "kernel build, native builds",
    "flex": "kernel build",
    "libelf-dev": "kernel build (objtool)",
    "lz4": "kernel build (bzImage)",
    "xz-utils": "the kernel's source archive",
    "libseccomp-dev": "the agent links libseccomp statically",
    "ca-certificates": "downloads",
}
VENV_PACKAGES = {"python3-venv": "the private Python environment"}
RUN_PACKAGES = {
    "qemu-system-x86": "the tcg engine",
    "qemu-system-common": "virtiofsd",
}
TEST_PACKAGES = {
    "busybox-static": "images of the tests and the demo",
    "acpica-tools": "compiler that reads the ACPI tables back",
    "e2fsprogs": "file systems on the tests' disks",
    "iproute2": "network tests",
    "kmod": "modules of the tests' own kernel",
}

_T = TypeVar("_T")

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_INDEX_LIFE_S = 24 * 3600.0


@dataclass(frozen=True)
class Download:
    """A package as found in an archive. `version` is Debian's version string."""

    package: str
    version: str


def missing(packages: Iterable[str]) -> list[str]:
    """Which of these packages are not installed."""
    installed = {
        name
        for name, status in (
            line.split("\t")
            for line in capture(["dpkg-query", "-W", "-f", "${Package}\t${db:Status-Status}\n"]).splitlines()
        )
        if status == "installed"
    }
    return [package for package in packages if package not in installed]


def install(packages: dict[str, str]) -> None:
    """Install what is missing of these packages (name to reason), without recommended ones.

    Raises PrerequisiteError with the command to type when this process is not root.
    """
    if shutil.which("dpkg-query") is None:
        raise PrerequisiteError(
            "This machine has no dpkg; Strato is built on Debian 12 or later. "
            f"Elsewhere install the equivalents of: {' '.join(sorted(packages))}"
        )
    wanted = missing(sorted(packages))
    if not wanted:
        return
    for package in wanted:
        say(f"Debian package {package} is missing ({packages[package]})")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *wanted]
    if os.geteuid() != 0:
        raise PrerequisiteError(f"Not root, so nothing is installed; run: sudo {' '.join(command)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    log = layout.LOGS / "apt.log"
    with step(f"Install {len(wanted)} Debian packages"):
        try:
            run(command, log=log, env=environment)
        except CommandError:
            say("apt-get failed; its package lists may be old")
            update()
            run(command, log=log, env=environment)


def candidate(package: str) -> Download:
    """The version of a package that the machine's own sources offer.

    Raises PrerequisiteError when they offer none.
    """
    version = _candidate(package, ())
    if version is None and os.geteuid() == 0:
        update()
        version = _candidate(package, ())
    if version is None:
        raise PrerequisiteError(
            f"Debian package {package} is not offered by this machine's apt sources; "
            "run 'apt-get update', or add Debian's main archive"
        )
    return Download(package, version)


def first_dependency(package: str) -> str:
    """The package that a meta-package stands for. Raises PrerequisiteError when it depends on nothing."""
    candidate(package)  # says what to do when the lists do not know it
    for line in capture(["apt-cache", "depends", package], env={"LC_ALL": "C"}).splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends":
            return name
    raise PrerequisiteError(f"Debian package {package} depends on nothing")


def fetch(download: Download, directory: Path, options: Sequence[str] = ()) -> Path:
    """Download a package file into a folder and return its path. Raises DownloadError."""
    command = ["apt-get", *_sandbox(), *options, "download", f"{download.package}={download.version}"]
    with step(f"Download {download.package} {download.version}"):
        try:
            run(command, log=layout.LOGS / "apt.log", cwd=directory)
        except CommandError as error:
            raise DownloadError(f"Cannot download {download.package} {download.version}") from error
    return next(directory.glob(f"{download.package}_*.deb"))


def retry_with_fresh_lists(action: Callable[[], _T]) -> _T:
    """Run `action`, and once more after `apt-get update` when a download fails in it.

    An archive keeps only the newest version of a package, so lists of last week name files that are gone.
    `action` must look the candidate up anew. Raises what `action` raises.
    """
    try:
        return action()
    except DownloadError:
        if os.geteuid() != 0:
            raise
        say("The machine's package lists may be older than the archive")
        update()
        return action()


def update() -> None:
    """Renew the machine's package lists. Raises CommandError."""
    with step("Update Debian's package lists"):
        run(["apt-get", "update"], log=layout.LOGS / "apt.log", env={"DEBIAN_FRONTEND": "noninteractive"})


def unpack(package_file: Path, directory: Path) -> None:
    """Unpack a package's files below a folder; none of its scripts runs. Raises CommandError."""
    run(["dpkg-deb", "-x", package_file, directory], log=layout.LOGS / "apt.log")


class PrivateAptRoot:
    """apt with sources, state and cache of its own, for packages of another Debian suite.

    `directory` keeps it between runs; its package lists are renewed once a day.
    """

    def __init__(self, directory: Path, suite: str) -> None:
        self.suite = suite
        self._directory = directory / suite

    def candidate(self, package: str) -> Download:
        """The version in the suite, which is printed. Raises PrerequisiteError and CommandError."""
        self._update()
        version = _candidate(package, self._options())
        if version is None:
            raise PrerequisiteError(f"Debian suite {self.suite} has no package {package}")
        say(f"Debian {self.suite} has {package} {version}")
        return Download(package, version)

    def fetch(self, download: Download, directory: Path) -> Path:
        """Download a package file of the suite into a folder. Raises CommandError."""
        return fetch(download, directory, self._options())

    def _options(self) -> tuple[str, ...]:
        settings = {
            "Dir::Etc::sourcelist": self._directory / "sources.list",
            "Dir::Etc::sourceparts": self._directory / "none",
            "Dir::Etc::preferences": self._directory / "none",
            "Dir::Etc::preferencesparts": self._directory / "none",
            "Dir::State": self._directory / "state",
            "Dir::State::status": self._directory / "status",
            "Dir::Cache": self._directory / "cache",
        }
        return tuple(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))

    def _update(self) -> None:
        stamp = self._directory / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _INDEX_LIFE_S:
            return
        for folder in ("none", "state/lists/partial", "cache/archives/partial"):
            (self._directory / folder).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources.list").write_text(
            f"deb [signed-by={_KEYRING}] {_mirror()} {self.suite} main\n"
        )
        with step(f"Fetch the package list of Debian {self.suite} into a private apt root"):
            run(
                ["apt-get", *_sandbox(), *self._options(), "update"],
                log=layout.LOGS / "apt.log",
            )
        stamp.touch()


def _candidate(package: str, options: Sequence[str]) -> str | None:
    for line in capture(["apt-cache", *options, "policy", package], env={"LC_ALL": "C"}).splitlines():
        name, _, value = line.strip().partition(": ")
        if name == "Candidate" and value != "(none)":
            return value
    return None


def _mirror() -> str:
    """The Debian mirror that this machine uses already."""
    sites = capture(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    )
    # Security archives have no suites but their own.
    mirrors = [site for site in sites.split() if "security" not in site]
    return mirrors[0].rstrip("/") if mirrors else _DEFAULT_MIRROR


def _sandbox() -> tuple[str, ...]:
    """apt drops root for downloads, and that user cannot write below a private cache folder."""
    return ("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
