"""Engine kvm beside QEMU's microvm on the same KVM, with the same kernel, guest and devices: `machine`.

Runs in the KVM lab where there is no usable /dev/kvm (`perf.kvm`). Each sample is one process from its
start until the guest's init speaks: time, processor time, exits of the vCPU by kind, system calls, and the
private memory that the process then holds beside the guest's RAM. Then it is left alone, and paused a few
times; not the other way round, because a guest of QEMU's wakes up less often once it was paused.

Two kinds of exits follow time and not the VMM: windows for interrupts are those of the guest's own timer,
of which a longer boot has more, and a guest halts when it has spoken, while its counters are being read. The
latter is told without a judgement.
"""

import contextlib
import os
import select
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.framework import guest_image, qemu_kvm
from tests.framework.patience import patient
from tests.framework.vhost_devices import process_cpu_ns
from vmm import paths
from vmm.boards.base import board
from vmm.config import BoardName, BootConfig, ConsoleConfig, EngineName, MemoryConfig, VmConfig
from vmm.decoding import dump
from vmm.engines.traits import traits
from vmm.jail import view
from vmm.log import Log
from vmm.qmp.client import QmpClient

from .measure import Ratio, interleave, ratio, series
from .memory import Memory, of_bare_interpreter, of_command, of_guest_process
from .report import say

GROUP = "machine"
MEMORY_MIB = 128
READY = b"=> ready"
DEADLINE_S = 120.0
SETTLE_S, IDLE_S = 3.0, 5.0
PAUSES = 10

NATIVE_BUDGET, WHOLE_BUDGET = 0.9, 1.3
PRIVATE_BUDGET_MIB, NATIVE_BUDGET_MIB = 12, 5
FEWER = 1.0

# Tells on standard error when Python itself was up.
_TELL_START = "import os; from vmm.__main__ import STARTED_AT; os.write(2, str(STARTED_AT).encode())"
# All that strato-vmm imports until its guest runs, and nothing native but what Python needs itself.
_IMPORT_ALL = (
    "from vmm.engines import kvm; from vmm.qmp import server; "
    "print(); sys.stdout.flush(); sys.stdin.read(); sys.exit()"
)

_KVM_DEBUG = Path("/sys/kernel/debug/kvm")
_TRACING = Path("/sys/kernel/debug/tracing")
_SYSCALLS = _TRACING / "events/raw_syscalls/sys_enter"


@dataclass(frozen=True)
class Side:
    """One of the two: its command line, where it serves QMP, and whether it tells when it had started."""

    command: Sequence[str]
    qmp: Path
    tells_start: bool = False


@dataclass(frozen=True)
class Sample:
    """One life: up to the first word from user space, then rest, then pauses."""

    seconds: float
    native_seconds: float
    """From the configuration's being read."""
    cpu_seconds: float
    memory: Memory
    exits: dict[str, int]
    syscalls: int
    pause_seconds: float
    idle_exits_per_s: float

    def exits_of(self, kind: str) -> int:
        """How many exits of that kind there were until user space."""
        return self.exits.get(kind, 0)


def machine(rounds: int) -> list[str]:
    """Prints the comparison; returns what is surely over its budget."""
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
        sides = {"strato-vmm": _strato_vmm(config), "QEMU": _qemu(config)}
        for file in (config.boot.kernel, paths.library_dir() / "libstrato_vmm.so", paths.qemu()):
            file.read_bytes()  # into the page cache
        taken = interleave({name: partial(live, side) for name, side in sides.items()}, rounds)
    rows = [*_rows(taken)]
    _print_table([*taken], rows)
    return [row.title for row in rows if row.missed]


@dataclass(frozen=True)
class Row:
    """One figure: the medians of both sides, theirs None where there is but ours."""

    title: str
    ours: float
    theirs: float | None = None
    ratio: Ratio | None = None
    budget: float | None = None
    missed: bool = False


def _print_table(sides: Sequence[str], rows: Sequence[Row]) -> None:
    say(f"{'until user space, medians':44} {sides[0]:>12} {sides[1]:>12} {'ratio':>7} {'budget':>7}")
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:.3f}"
        found = "" if row.ratio is None else f"{row.ratio.mean:.2f}"
        budget = "" if row.budget is None else f"{row.budget:g}"
        line = f"{row.title:44} {row.ours:12.3f} {theirs:>12} {found:>7} {budget:>7}"
        say(f"{line}{' MISSED' if row.missed else ''}".rstrip())


def _rows(taken: dict[str, list[Sample]]) -> Iterator[Row]:
    ours = taken["strato-vmm"]
    yield _compare("configuration read to user space", taken, lambda s: s.native_seconds, NATIVE_BUDGET)
    yield _compare("process start to user space", taken, lambda s: s.seconds, WHOLE_BUDGET)
    yield _compare("processor seconds to user space", taken, lambda s: s.cpu_seconds, FEWER)
    if _SYSCALLS.exists():
        yield _compare("system calls to user space", taken, lambda s: s.syscalls, FEWER)
    else:
        say("system calls: nobody counts them here, since there is no tracefs")
    seen = (s.exits for samples in taken.values() for s in samples)
    for kind in sorted({kind for exits in seen for kind, count in exits.items() if count}):
        budget = None if kind == "halt_exits" else FEWER
        yield _compare(f"KVM to user space: {kind}", taken, partial(Sample.exits_of, kind=kind), budget)
    yield _compare("pause, seconds", taken, lambda s: s.pause_seconds, FEWER)
    yield _compare("exits per second at rest", taken, lambda s: s.idle_exits_per_s, FEWER)
    yield _compare("private MiB beside the guest's RAM", taken, lambda s: s.memory.private / 1024, None)
    private = statistics.median(s.memory.private for s in ours) / 1024
    yield _bounded("private MiB of strato-vmm", private, PRIVATE_BUDGET_MIB)
    yield Row("  above a bare interpreter", private - of_bare_interpreter().private / 1024)
    imported = of_command(view.command(_IMPORT_ALL)).private / 1024
    yield _bounded("  native part: above one with all imports", private - imported, NATIVE_BUDGET_MIB)
    yield _compare("touched MiB of the guest's RAM", taken, lambda s: s.memory.guest_ram / 1024, None)


def _strato_vmm(config: VmConfig) -> Side:
    file, qmp = config.runtime_dir / "vm.json", config.runtime_dir / "strato.sock"
    file.write_text(dump(config))
    options = ["--config", str(file), "--qmp-path", str(qmp), "--log-level", "error"]
    return Side([*view.command(_TELL_START), *options], qmp, tells_start=True)


def _qemu(config: VmConfig) -> Side:
    qmp = config.runtime_dir / "qemu.sock"
    plan = board(BoardName.MICROVM).plan(config, traits(EngineName.KVM, config, Log()))
    command = qemu_kvm.command_line(plan, console="stdio,signal=off")
    return Side([*command, "-qmp", f"unix:{qmp},server=on,wait=off"], qmp)


def live(side: Side) -> Sample:
    """One life of a VM. Raises AssertionError when the guest does not come up."""
    side.qmp.unlink(missing_ok=True)
    pipe = subprocess.PIPE
    with _counting_syscalls() as syscalls:
        begin = time.monotonic()
        with subprocess.Popen(side.command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                _wait_ready(process, begin + patient(DEADLINE_S))
                ready = time.monotonic()
                cpu_seconds = process_cpu_ns(process.pid) / 1e9
                exits, calls = _exits(process.pid), syscalls(process.pid)
                with QmpClient(side.qmp, timeout_s=patient(DEADLINE_S)) as qmp:
                    configured = _configured(process, qmp) if side.tells_start else begin
                    time.sleep(SETTLE_S)  # what is to be measured is a guest that has nothing to do
                    before = _exits(process.pid)["exits"]
                    time.sleep(IDLE_S)
                    idle = _exits(process.pid)["exits"] - before
                    pause_seconds = statistics.median(_pause(qmp) for _ in range(PAUSES))
                return Sample(
                    seconds=ready - begin,
                    native_seconds=ready - configured,
                    cpu_seconds=cpu_seconds,
                    memory=of_guest_process(process.pid, MEMORY_MIB << 20),
                    exits=exits,
                    syscalls=calls,
                    pause_seconds=pause_seconds,
                    idle_exits_per_s=idle / IDLE_S,
                )
            finally:
                process.send_signal(signal.SIGKILL)


def _configured(process: "subprocess.Popen[bytes]", qmp: QmpClient) -> float:
    """The moment at which strato-vmm had read its configuration."""
    assert process.stderr is not None
    started_at = float(os.read(process.stderr.fileno(), 64))
    return started_at + float(qmp.execute("x-strato-info")["phases_ms"]["configured"]) / 1000


def _pause(qmp: QmpClient) -> float:
    begin = time.monotonic()
    qmp.execute("stop")
    seconds = time.monotonic() - begin
    qmp.execute("cont")
    return seconds


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


def _compare(
    title: str, taken: dict[str, list[Sample]], figure: Callable[[Sample], float], budget: float | None
) -> Row:
    """Prints all values; returns their medians with whether they are surely over the budget."""
    values = {side: [float(figure(sample)) for sample in samples] for side, samples in taken.items()}
    our_median, their_median = (statistics.median(row) for row in values.values())
    for side, row in values.items():
        say(f"{title}: {side}: {series(row, unit='')}")
    ours, theirs = values.values()
    if not all(ours) or not all(theirs):
        missed = budget is not None and sum(ours) > sum(theirs)
        return Row(title, our_median, their_median, budget=budget, missed=missed)
    found = ratio(ours, theirs)
    missed = budget is not None and found.low > budget
    say(f"{title}: {' ÷ '.join(values)} = {found}")
    return Row(title, our_median, their_median, found, budget, missed)


def _bounded(title: str, value: float, budget: float) -> Row:
    return Row(title, value, budget=budget, missed=value > budget)
