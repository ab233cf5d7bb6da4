"""`python -m tests.perf [--rounds N] [--only GROUP]…`, behind `make bench`. Exit status 1 when a ratio is
surely over its budget.
"""

import argparse
import ctypes
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial

from tests.conftest import PR_SET_CHILD_SUBREAPER
from tests.framework.daemons import DaemonOptions, TestDaemon
from tests.framework.runtime import STRATO, Runtime, runtime_under_test
from tools.containerd import scratch_directory

from . import bench, devices, kvm, kvm_devices, machine
from .report import OVER, say

CONTAINERS = "containers"
GROUPS: dict[str, Callable[[int], list[str]]] = {
    "fs": devices.files,
    "block": devices.block,
    "vsock": devices.vsock,
    "net": devices.net,
    machine.GROUP: partial(kvm.run, machine.GROUP, machine.machine),
    kvm_devices.GROUP: partial(kvm.run, kvm_devices.GROUP, kvm_devices.kvm_devices),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all measurements in one go."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf")
    parser.add_argument("--rounds", type=int, default=10)
    names = [CONTAINERS, *GROUPS]
    parser.add_argument("--only", action="append", choices=names, help="a group; may be given again")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    over: list[str] = []
    for name in options.only or names:
        say(f"== {name}")
        over += containers(options.rounds) if name == CONTAINERS else GROUPS[name](options.rounds)
    say(f"{OVER}{', '.join(over)}" if over else "All ratios are within their budgets")
    return 1 if over else 0


def containers(rounds: int) -> list[str]:
    """Whole containers, through containerd."""
    runtime = Runtime(STRATO, runtime_under_test().programs)
    directory = scratch_directory()
    try:
        with TestDaemon(DaemonOptions(kind="2.3", runtime=runtime)) as daemon:
            over = bench.run_against_bare_boot(daemon, rounds)
            over += bench.phases(daemon, rounds)
            over += bench.idle_memory(daemon)
            over += bench.exec_beside_runc(daemon, rounds)
            over += bench.files(daemon, max(3, rounds // 3), directory / "files")
            over += bench.start_verb(daemon, 2 * rounds, directory / "start")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return over


if __name__ == "__main__":
    sys.exit(main())
