"""`strato doctor`: what this host offers, what is missing, and how to mend it.

Each check is a function that looks and answers with a `Finding`; nothing is changed on the host.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .. import paths
from ..config import EngineName
from ..engines import probe
from ..errors import ProgramNotFoundError
from ..log import Level, Log

MIN_MEMORY_MIB = 1024
"""MiB of available memory below which a sandbox (256 MiB guest, VMM, shim) and its host get into trouble."""

BUILT_PARTS = (
    "vmlinux",
    "initramfs.img",
    "strato-launch",
    "strato-holder",
    "libstrato_sys.so",
    "libstrato_vmm.so",
)


class Grade(StrEnum):
    """What a finding means for sandboxes."""

    OK = "ok"
    NOTE = "note"
    """Works, with a restriction."""
    MISSING = "MISSING"
    """Sandboxes cannot run."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check; ``mend`` is what to do about it."""

    grade: Grade
    what: str
    mend: str = ""


def run() -> int:
    """Print all findings; return 1 if sandboxes cannot run."""
    verdict = probe.verdict(Log(Level.ERROR), anew=True)
    lines = [f"engine   {verdict.engine}: {verdict.reason}"]
    findings = [finding for check in CHECKS for finding in check()]
    for finding in findings:
        lines.append(f"{finding.grade:8} {finding.what}")
        if finding.mend:
            lines.append(f"         -> {finding.mend}")
    missing = sum(finding.grade is Grade.MISSING for finding in findings)
    lines.append(f"Sandboxes cannot run: {missing} missing." if missing else "This host can run sandboxes.")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if missing else 0


def check_root() -> Iterator[Finding]:
    """Sandboxes need namespaces, mounts and taps."""
    if os.geteuid() == 0:
        yield Finding(Grade.OK, "running as root")
    else:
        yield Finding(Grade.NOTE, "not running as root: some checks see less", "run strato doctor as root")


def check_programs() -> Iterator[Finding]:
    """The programs that strato-vmm starts."""
    try:
        program = paths.qemu()
    except ProgramNotFoundError as error:
        text, _, mend = str(error).partition(": ")
        usable = probe.verdict(Log(Level.ERROR)).engine is EngineName.KVM
        yield Finding(Grade.NOTE if usable else Grade.MISSING, f"{text} (engine tcg)", mend)
    else:
        yield Finding(Grade.OK, f"{program} ({_version_of(program)})")


def check_built_parts() -> Iterator[Finding]:
    """The guest and the native parts."""
    library = paths.library_dir()
    for name in BUILT_PARTS:
        file = library / name
        if file.exists():
            yield Finding(Grade.OK, f"{file} ({file.stat().st_size / (1 << 20):.1f} MiB)")
        else:
            yield Finding(Grade.MISSING, f"{file} does not exist", "build it: make build")


def check_devices() -> Iterator[Finding]:
    """Device nodes of the host's kernel."""
    verdict = probe.verdict(Log(Level.ERROR))
    if verdict.engine is EngineName.KVM:
        yield Finding(Grade.OK, f"{probe.KVM_DEVICE} runs guests: {verdict.reason}")
    else:
        yield Finding(
            Grade.NOTE,
            f"no usable KVM, tcg emulates the CPU: {verdict.reason}",
            "on hardware: enable virtualisation in the firmware, modprobe kvm_intel or kvm_amd; in a VM: "
            "let its host offer nested virtualisation",
        )
    tun = Path("/dev/net/tun")
    try:
        os.close(os.open(tun, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        yield Finding(Grade.MISSING, f"{tun} cannot be opened: {error.strerror}", "modprobe tun, as root")
    else:
        yield Finding(Grade.OK, f"{tun} opens")


def check_cgroups() -> Iterator[Finding]:
    """cgroup v1 and v2 both work; no cgroups at all do not."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        controllers = (root / "cgroup.controllers").read_text().split()
        yield Finding(Grade.OK, f"cgroup v2 with {', '.join(controllers) or 'no controllers'}")
    elif (root / "memory").is_dir():
        yield Finding(Grade.OK, "cgroup v1")
    else:
        yield Finding(Grade.MISSING, f"no cgroups at {root}", "mount cgroup2 at /sys/fs/cgroup")


def check_memory() -> Iterator[Finding]:
    """Room for at least one sandbox."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available_mib = int(fields["MemAvailable"].split()[0]) >> 10
    text = f"{available_mib} MiB of memory available"
    if available_mib >= MIN_MEMORY_MIB:
        yield Finding(Grade.OK, text)
    else:
        yield Finding(Grade.NOTE, text, f"a sandbox is comfortable with {MIN_MEMORY_MIB} MiB")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_root,
    check_programs,
    check_built_parts,
    check_devices,
    check_cgroups,
    check_memory,
)


def _version_of(program: Path) -> str:
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    lines = (result.stdout or result.stderr).splitlines()
    return lines[0].strip() if lines else "no version"
