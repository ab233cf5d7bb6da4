"""The measurements of `make bench`, each a function that prints its lines and returns what is over
its budget.
"""

import ast
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.framework.command import eventually
from tests.framework.ctr import Ctr
from tests.framework.daemons import TestDaemon
from tests.framework.runtime import RUNC
from tests.framework.sandbox import processes_of
from tests.framework.shim_process import ShimProcess
from tests.framework.specs import SpecFactory
from tools import bare_boot, layout
from tools.cache import Cache

from . import memory
from .measure import Ratio, interleave, ratio, series
from .report import say

RUN_BUDGET = 2.0
START_BUDGET = 2.5
FILE_MIB = 256
IDLE_S = 10
VMM_BUDGET_KIB = 8192
FILES_TIMEOUT_S = 600.0
TREE_FILES, TREE_FOLDERS = 20_000, 200


def run_against_bare_boot(daemon: TestDaemon, rounds: int) -> list[str]:
    """`ctr run --rm … true` divided by a bare boot of the same kernel in QEMU."""
    kernel, probe = layout.LIBRARY / "vmlinux", bare_boot.probe_image(Cache())
    values = interleave(
        {
            "ctr run": lambda: daemon.ctr.run("true").check().seconds,
            "bare boot": lambda: bare_boot.boot(kernel, probe, cpus=1).seconds,
        },
        rounds,
    )
    return _compared("container run", values, RUN_BUDGET)


def start_verb(daemon: TestDaemon, rounds: int, directory: Path) -> list[str]:
    """The shim's `start` verb divided by an interpreter that does nothing."""
    name = daemon.ctr.new_id("bench")
    spec = SpecFactory(daemon.ctr, directory).spec(name, ["true"])

    def start() -> float:
        with ShimProcess(daemon, name, spec, directory) as shim:
            begin = time.monotonic()
            done = shim.verb("start")
            seconds = time.monotonic() - begin
            assert done.status == 0, done
            return seconds

    def nothing() -> float:
        begin = time.monotonic()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True, capture_output=True)
        return time.monotonic() - begin

    values = interleave({"start verb": start, "bare interpreter": nothing}, rounds)
    return _compared("shim start", values, START_BUDGET)


def exec_beside_runc(daemon: TestDaemon, rounds: int) -> list[str]:
    """One `ctr task exec` of `true` in a microVM and in a runc container."""
    reference = Ctr(daemon.containerd, runtime=RUNC, namespace=daemon.ctr.namespace, cgroup=daemon.cgroup)
    ours = daemon.ctr.run_detached("sleep", "10000")
    theirs = reference.run_detached("sleep", "10000")
    values = interleave(
        {
            "strato exec": lambda: daemon.ctr.exec(ours, "true").check().seconds,
            "runc exec": lambda: reference.exec(theirs, "true").check().seconds,
        },
        rounds,
    )
    daemon.ctr.remove_all()
    return _compared("exec", values, None)


def files(daemon: TestDaemon, rounds: int, directory: Path) -> list[str]:
    """Sequential read of a large file and a walk over a tree, on a volume, beside runc."""
    volume = directory / "volume"
    (volume / "tree").mkdir(parents=True)
    with (volume / "large").open("wb") as file:
        for _ in range(FILE_MIB):
            file.write(os.urandom(1 << 20))
    for folder in range(TREE_FOLDERS):
        (volume / "tree" / str(folder)).mkdir()
        for number in range(TREE_FILES // TREE_FOLDERS):
            (volume / "tree" / str(folder) / str(number)).write_text("x")
    mount = ("--mount", f"type=bind,src={volume},dst=/data,options=rbind:ro")
    reference = Ctr(daemon.containerd, runtime=RUNC, namespace=daemon.ctr.namespace, cgroup=daemon.cgroup)
    clients = {"strato": daemon.ctr, "runc": reference}
    names = {kind: ctr.run_detached("sleep", "10000", options=mount) for kind, ctr in clients.items()}
    over = []
    for title, command in (
        (f"read of {FILE_MIB} MiB", "dd if=/data/large of=/dev/null bs=1M 2>/dev/null"),
        (f"walk over {TREE_FILES} files", "find /data/tree -type f -size +0 | wc -l"),
    ):
        # The guest's clock is read in the guest: the exec around it has a figure of its own.
        script = f"read a _ < /proc/uptime; {command} > /dev/null; read b _ < /proc/uptime; echo $a $b"

        def once(kind: str, script: str = script) -> float:
            done = clients[kind].exec(names[kind], "sh", "-c", script, timeout_s=FILES_TIMEOUT_S)
            begin, end = done.check().text.split()
            return max(0.01, float(end) - float(begin))

        values = interleave({kind: lambda kind=kind: once(kind) for kind in clients}, rounds)  # type: ignore[misc]
        over += _compared(title, values, None)
    daemon.ctr.remove_all()
    return over


def idle_memory(daemon: TestDaemon) -> list[str]:
    """Host memory of every process of an idle sandbox, and the guest's own use."""
    name = daemon.ctr.run_detached("sleep", "10000")
    # What the boot has given back lies in the processor's own lists at first, where no figure finds it.
    time.sleep(IDLE_S)
    over: list[str] = []
    say("host memory in KiB (private, proportional, resident guest RAM):")
    for kind, pid in processes_of(daemon, name).pids.items():
        found = memory.of_process(pid)
        say(f"  {kind:10} {found.private:8} {found.proportional:8} {found.guest_ram:8}")
        if kind == "vmm":
            above = found.private - memory.of_bare_interpreter().private
            say(f"  strato-vmm's private memory above a bare interpreter: {above} (budget: {VMM_BUDGET_KIB})")
            over += ["private memory of strato-vmm"] if above > VMM_BUDGET_KIB else []
    lines = daemon.ctr.exec(name, "cat", "/proc/meminfo").check().text.splitlines()
    values = {words[0]: int(words[1]) for words in (line.split() for line in lines)}
    used = values["MemTotal:"] - values["MemAvailable:"]
    say(
        f"guest memory: {used} KiB used of {values['MemTotal:']} KiB "
        f"(MemTotal less MemAvailable, idle for {IDLE_S} s)"
    )
    daemon.ctr.remove_all()
    return over


def phases(daemon: TestDaemon, rounds: int) -> list[str]:
    """What `ctr run --rm … true` spends its time on, from the shim's last line about each sandbox."""
    seen: list[dict[str, float]] = []
    for _ in range(rounds):
        name = daemon.ctr.new_id("phases")
        daemon.ctr.run("true", container_id=name).check()
        seen.append(_phases_of(daemon, name))
    say("phases of a container's life in ms since the shim began, median (and since the phase before):")
    before = 0.0
    for phase in sorted(seen[-1], key=seen[-1].__getitem__):
        reached = statistics.median(each[phase] for each in seen)
        say(f"  {phase:18} {reached:8.1f}  +{reached - before:7.1f}")
        before = reached
    return []


def _phases_of(daemon: TestDaemon, name: str) -> dict[str, float]:
    """Of the line "sandbox ended" in containerd's log, which the daemon copies when it gets to it."""
    line = re.compile(rf'msg="sandbox ended" id={name} phases="(\{{[^"}}]*\}})"')
    found: list[str] = []

    def told() -> bool:
        found[:] = line.findall(daemon.containerd.log_path.read_text(errors="replace"))
        return bool(found)

    eventually(told, f"the shim of {name} tells its phases")
    told_phases: dict[str, float] = ast.literal_eval(found[-1])
    return told_phases


def _compared(title: str, values: dict[str, list[float]], budget: float | None) -> list[str]:
    """Prints both series and their ratio; the title when the ratio is surely over the budget."""
    for name, series_of in values.items():
        say(f"{title}: {name}: {series(series_of)}")
    numerators, denominators = values.values()
    found: Ratio = ratio(numerators, denominators)
    wanted = f", budget {budget}" if budget is not None else ""
    say(f"{title}: {' ÷ '.join(values)} = {found}{wanted}")
    return [title] if budget is not None and found.low > budget else []
