"""Engine kvm beside QEMU's microvm on the same KVM, with the same kernel, guest and devices: `machine`.

Needs a usable /dev/kvm; without one it runs in the KVM lab (tests/lab). Each sample is one process from its
start until the guest's init speaks: time, processor time, exits of the vCPU by kind, system calls, and the
private memory that the process then holds beside the guest's RAM.
"""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.framework import guest_image
from tests.framework.patience import patient
from tests.framework.vhost_devices import process_cpu_ns
from vmm import paths
from vmm.boards.base import MachinePlan, board
from vmm.config import BoardName, BootConfig, ConsoleConfig, EngineName, MemoryConfig, VmConfig
from vmm.decoding import dump
from vmm.engines import probe
from vmm.engines.traits import traits
from vmm.jail import view
from vmm.log import Level, Log

from .measure import interleave, ratio, series
from .memory import of_guest_process
from .report import say

MEMORY_MIB = 128
READY = b"=> ready"
DEADLINE_S = 120.0

_KVM_DEBUG = Path("/sys/kernel/debug/kvm")
_TRACING = Path("/sys/kernel/debug/tracing")
_SYSCALLS = _TRACING / "events/raw_syscalls/sys_enter"


@dataclass(frozen=True)
class Sample:
    """One boot, up to the first word from user space."""

    seconds: float
    cpu_seconds: float
    private_kib: int
    exits: dict[str, int]
    syscalls: int


def machine(rounds: int) -> list[str]:
    """Prints the comparison; nothing here has a budget of its own."""
    verdict = probe.verdict(Log(Level.ERROR))
    if verdict.engine is not EngineName.KVM:
        say(f"left out, since there is no usable KVM here ({verdict.reason}); in the lab:")
        say("  python -m tests.lab -- python -m tests.perf --only machine")
        return []
    with tempfile.TemporaryDirectory(prefix="perf-") as name:
        directory = Path(name)
        config = VmConfig(
            name="perf",
            engine=EngineName.KVM,
            runtime_dir=directory,
            boot=BootConfig(kernel=paths.kernel().resolve(), initrd=guest_image.build(directory)),
            memory=MemoryConfig(size_mib=MEMORY_MIB),
            console=ConsoleConfig(stdio=True),
            spare_slots=0,
        )
        (directory / "vm.json").write_text(dump(config))
        ours = [*view.command(), "--config", str(directory / "vm.json"), "--log-level", "error"]
        theirs = qemu(board(BoardName.MICROVM).plan(config, traits(EngineName.KVM, config, Log())))
        for file in (config.boot.kernel, paths.library_dir() / "libstrato_vmm.so", paths.qemu()):
            file.read_bytes()  # into the page cache
        samples = interleave({"strato-vmm": lambda: boot(ours), "QEMU": lambda: boot(theirs)}, rounds)
    _compare("seconds to user space", {k: [s.seconds for s in v] for k, v in samples.items()})
    _compare("processor seconds", {k: [s.cpu_seconds for s in v] for k, v in samples.items()})
    _compare("private MiB", {k: [s.private_kib / 1024 for s in v] for k, v in samples.items()})
    _compare("system calls", {k: [float(s.syscalls) for s in v] for k, v in samples.items()})
    for side, taken in samples.items():
        kinds = sorted({kind for sample in taken for kind in sample.exits})
        medians = {kind: sorted(s.exits.get(kind, 0) for s in taken)[len(taken) // 2] for kind in kinds}
        say(f"exits: {side}: " + ", ".join(f"{kind} {count}" for kind, count in medians.items() if count))
    return []


def qemu(plan: MachinePlan) -> list[str]:
    """QEMU's command line for a VM as like to the plan as it can be."""
    machine = "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off,usb=off,auto-kernel-cmdline=off"
    return [
        str(paths.qemu()),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", f"{machine},accel=kvm", "-cpu", "host", "-smp", str(plan.cpu_count)),
        *("-m", f"{plan.memory.size_mib}M", "-global", "virtio-mmio.force-legacy=false"),
        *("-kernel", str(plan.kernel), "-initrd", str(plan.initrd), "-append", plan.cmdline),
        *("-chardev", "stdio,id=console,signal=off", "-device", "pvpanic"),
        *("-device", "virtio-serial-device,max_ports=1", "-device", "virtconsole,chardev=console"),
        *("-device", "virtio-rng-device"),
        *("-device", "virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on"),
    ]


def boot(command: Sequence[str]) -> Sample:
    """Boots once. Raises AssertionError when the guest does not come up."""
    with _counting_syscalls() as syscalls:
        begin = time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                _wait_ready(process, begin + patient(DEADLINE_S))
                seconds = time.monotonic() - begin
                return Sample(
                    seconds=seconds,
                    cpu_seconds=process_cpu_ns(process.pid) / 1e9,
                    private_kib=of_guest_process(process.pid, MEMORY_MIB << 20).private,
                    exits=_exits(process.pid),
                    syscalls=syscalls(process.pid),
                )
            finally:
                process.send_signal(signal.SIGKILL)


def _wait_ready(process: "subprocess.Popen[bytes]", deadline: float) -> None:
    assert process.stdout is not None
    output = b""
    while READY not in output:
        remaining = deadline - time.monotonic()
        ready, _, _ = select.select([process.stdout], [], [], max(0, remaining))
        data = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        assert data, f"The guest did not come up: {output.decode(errors='replace')}"
        output += data


def _exits(pid: int) -> dict[str, int]:
    """KVM's own counters of the process's VM, by name; halt polling apart."""
    found: Counter[str] = Counter()
    for directory in _KVM_DEBUG.glob(f"{pid}-*"):
        for file in directory.glob("*exits"):
            found[file.name] += int(file.read_text())
        for vcpu in directory.glob("vcpu*"):
            for file in vcpu.glob("*exits"):
                found[file.name] += int(file.read_text())
    return dict(found)


@contextlib.contextmanager
def _counting_syscalls() -> Iterator["_SyscallCount"]:
    """Lets the kernel count system calls by thread, where it can."""
    trigger = _SYSCALLS / "trigger"
    rule = "hist:keys=common_pid:size=65536"
    if not trigger.exists():
        yield _SyscallCount(available=False)
        return
    trigger.write_text(rule)
    try:
        yield _SyscallCount(available=True)
    finally:
        trigger.write_text(f"!{rule}")


@dataclass(frozen=True)
class _SyscallCount:
    available: bool

    def __call__(self, pid: int) -> int:
        """System calls of the living threads of a process so far; 0 where nobody counts."""
        if not self.available:
            return 0
        threads = {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
        counted = 0
        for line in (_SYSCALLS / "hist").read_text().splitlines():
            # { common_pid:       1234 } hitcount:         56
            words = line.replace("{", " ").replace("}", " ").replace(":", " ").split()
            if words[:1] == ["common_pid"] and int(words[1]) in threads:
                counted += int(words[words.index("hitcount") + 1])
        return counted


def _compare(title: str, values: dict[str, list[float]]) -> None:
    for side, taken in values.items():
        say(f"{title}: {side}: {series(taken, unit='')}")
    ours, theirs = values.values()
    if all(theirs) and all(ours):
        say(f"{title}: {' ÷ '.join(values)} = {ratio(ours, theirs)}")
    else:
        say(f"{title}: not counted here")
