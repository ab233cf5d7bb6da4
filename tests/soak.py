"""`python -m tests.soak [--count N]`, behind `make soak`: containers one after another, nothing left, nothing
growing.

Every container prints and exits with its own number. At the end the host holds what it held before, and the
daemon's log, the state directory and the memory of the daemon are printed for comparison.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Sequence

from tests.conftest import PR_SET_CHILD_SUBREAPER
from tests.framework.daemons import ALL_DAEMONS, DaemonOptions, TestDaemon
from tests.framework.leaks import LeakChecker
from tests.framework.runtime import runtime_under_test

REPORT_EVERY = 25


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
            print(f"{number + 1} containers, median of the last {REPORT_EVERY}: {recent:.2f} s", flush=True)  # noqa: T201
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; returns 0 when everything was right and nothing is left."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--daemon", choices=ALL_DAEMONS, default="2.3")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with TestDaemon(DaemonOptions(kind=options.daemon, runtime=runtime_under_test())) as daemon:
        checker = LeakChecker(daemon.scope)
        seconds = soak(daemon, options.count)
        left = checker.leaks()
    print("\n".join(["Left over:", *left]) if left else "Nothing is left over")  # noqa: T201
    print(f"{options.count} containers, median {statistics.median(seconds):.2f} s, last {seconds[-1]:.2f} s")  # noqa: T201
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
