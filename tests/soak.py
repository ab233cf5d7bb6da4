"""`python -m tests.soak [--count N] [--minutes N] [--only PART]`, behind `make soak`: nothing is left,
nothing grows.

`devices`: for ten minutes every device of one VM works, and the private memory of strato-vmm stays flat.
`containers`: five hundred containers one after another, each of which prints and exits with its own number.
At the end the host holds what it held before.
"""

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import PR_SET_CHILD_SUBREAPER
from tests.framework.busy_vm import busy_vm
from tests.framework.daemons import ALL_DAEMONS, DaemonOptions, TestDaemon
from tests.framework.leaks import LeakChecker
from tests.framework.runtime import runtime_under_test
from tests.perf import memory

REPORT_EVERY = 25


MAX_GROWTH_KIB = 256
"""What the allocator may still add in the second half; a lost byte per request would be many times that."""


def devices(minutes: float) -> int:
    """Keeps all devices of a VM at work; returns 0 when strato-vmm's private memory does not grow."""
    with tempfile.TemporaryDirectory(prefix="stsoak-") as directory, busy_vm(Path(directory)) as busy:
        begin, samples = time.monotonic(), list[memory.Memory]()
        report = begin
        while (now := time.monotonic()) < begin + 60 * minutes:
            busy.work()
            samples.append(memory.of_process(busy.vm.process.pid))
            if now >= report:
                _say(
                    f"{(now - begin) / 60:.0f} min, {len(samples)} rounds: {samples[-1].private} KiB private"
                )
                report += 60
        with busy.vm.qmp() as qmp:
            counted = qmp.execute("x-strato-stats")["devices"]
        bare = memory.of_bare_interpreter().private
    for device in counted:
        _say(f"{device['device']}: {device['counters']}")
    half, last = len(samples) // 2, samples[-1].private
    dirty = [sample.dirty for sample in samples]
    growth = statistics.median(dirty[-max(1, half // 2) :]) - statistics.median(dirty[: max(1, half)])
    _say(
        f"{len(samples)} rounds in {minutes:g} min: strato-vmm's private memory {samples[0].private} KiB at "
        f"first, {last} KiB in the end ({last - bare} above a bare interpreter), what it has written grew by "
        f"{growth:.0f} KiB from the first half to the last quarter, allowed {MAX_GROWTH_KIB}"
    )
    return int(growth > MAX_GROWTH_KIB)


def soak(daemon: TestDaemon, count: int) -> list[float]:
    """Runs `count` containers; the seconds of each. Raises AssertionError at the first wrong answer."""
    seconds = []
    for number in range(count):
        begin = time.monotonic()
        result = daemon.ctr.run("sh", "-c", f"echo number {number}; exit {number % 100}")
        seconds.append(time.monotonic() - begin)
        assert (result.status, result.text) == (number % 100, f"number {number}"), result
        if (number + 1) % REPORT_EVERY == 0:
            recent = statistics.median(seconds[-REPORT_EVERY:])
            _say(f"{number + 1} containers, median of the last {REPORT_EVERY}: {recent:.2f} s")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; returns 0 when everything was right and nothing is left."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="containers")
    parser.add_argument("--minutes", type=float, default=10, help="of the devices' work")
    parser.add_argument("--daemon", choices=ALL_DAEMONS, default="2.3")
    parser.add_argument("--only", choices=("devices", "containers"))
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    failed = 0
    if options.only != "containers":
        failed += devices(options.minutes)
    if options.only != "devices":
        failed += containers(options.daemon, options.count)
    return int(failed > 0)


def containers(kind: str, count: int) -> int:
    """Runs the containers below one daemon; returns 0 when nothing is left of them."""
    with TestDaemon(DaemonOptions(kind=kind, runtime=runtime_under_test())) as daemon:
        checker = LeakChecker(daemon.scope)
        seconds = soak(daemon, count)
        left = checker.leaks()
    _say("\n".join(["Left over:", *left]) if left else "Nothing is left over")
    _say(f"{count} containers, median {statistics.median(seconds):.2f} s, last {seconds[-1]:.2f} s")
    return int(bool(left))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
