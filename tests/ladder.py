"""The test ladder: `python -m tests.ladder [--full] [-x] [RUNG...]`, behind `make test`.

Runs the rungs from cheap to dear, each as one pytest run with a deadline, prints the seconds of each and one
closing line. `--lint`, `--soak` and `--bench` run only that part. The exit status is 0 when nothing failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Rung:
    """One marker's tests, the folders they live in, how long they may take in all, and options of pytest."""

    marker: str
    folders: tuple[str, ...]
    deadline_s: float
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a rung gave."""

    marker: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    def __str__(self) -> str:
        counts = f"{self.passed:5} passed {self.failed:5} failed {self.skipped:5} skipped"
        return f"{self.marker:12} {counts} {self.seconds:8.1f} s"


RUNGS = (
    Rung("unit", ("tests/unit",), 300),
    # These two compile what only they need, on a machine that may have other work as well.
    Rung("style", ("tests/style",), 1800),
    # Some need root, and stand beside the others of their module.
    Rung("native", ("tests/native", "tests/unit"), 1800),
    Rung("integration", ("tests/integration",), 900),
    Rung("differential", ("tests/differential",), 1500),
    Rung("containerd", ("tests/containerd",), 2400),
    # Tests of the two rungs before, in a test host that has KVM (tests/lab/selection.py).
    Rung("lab", ("tests/lab", "tests/integration", "tests/containerd"), 2400, ("--lab",)),
)
# Long runs take what they need several times over.
FULL_FACTOR = 4


def run_rung(rung: Rung, options: argparse.Namespace) -> Outcome:
    """Runs one rung in a pytest of its own. A rung that breaks or runs out of time counts as one failure."""
    begin = time.monotonic()
    print(f"== {rung.marker}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="strato-ladder-") as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", rung.marker, *rung.folders]
        command += [*rung.options, "--quiet", f"--junitxml={report}", "--durations=5", "--tb=short"]
        command += ["--full"] if options.full else []
        command += ["--exitfirst"] if options.exitfirst else []
        deadline_s = rung.deadline_s * (FULL_FACTOR if options.full else 1)
        status = _run(command, deadline_s)
        passed, failed, skipped = _counts(report)
    # Status 5: no tests were collected; 1: some failed, which the report says as well.
    if failed == 0 and status not in (0, 5):
        failed = 1
    return Outcome(rung.marker, passed, failed, skipped, time.monotonic() - begin)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.ladder", description=__doc__.partition("\n")[0])
    names = [rung.marker for rung in RUNGS]
    parser.add_argument("rungs", nargs="*", metavar="RUNG", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--full", action="store_true", help="with the tests that are too long for every day")
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first failure")
    parser.add_argument("--lint", action="store_true", help="only the style rung")
    parser.add_argument(
        "--soak", action="store_true", help="devices at work for ten minutes, then five hundred containers"
    )
    parser.add_argument("--bench", action="store_true", help="speed and memory")
    options = parser.parse_args(arguments)
    unknown = set(options.rungs) - set(names)
    if unknown:
        parser.error(f"Unknown rung {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.soak or options.bench:
        module = "tests.soak" if options.soak else "tests.perf"
        return subprocess.run([sys.executable, "-m", module], cwd=CHECKOUT, check=False).returncode
    wanted = ["style"] if options.lint else options.rungs or names
    outcomes: list[Outcome] = []
    for rung in RUNGS:
        if rung.marker in wanted:
            outcomes.append(run_rung(rung, options))
            if outcomes[-1].failed and options.exitfirst:
                break
    return _summary(outcomes)


def _summary(outcomes: Sequence[Outcome]) -> int:
    print("\n".join(["== seconds of each rung", *(str(outcome) for outcome in outcomes)]))  # noqa: T201
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{passed} passed, {failed} failed", flush=True)  # noqa: T201
    return 1 if failed else 0


def _run(command: Sequence[str], deadline_s: float) -> int:
    # A session of its own, so that the deadline ends pytest together with what it has started.
    process = subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True)
    try:
        return process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        print(f"Out of time after {deadline_s:.0f} s", flush=True)  # noqa: T201
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(60) or 1
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 1
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        raise


def _counts(report: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a JUnit report; nothing when there is none."""
    if not report.exists():
        return 0, 0, 0
    totals = {"tests": 0, "errors": 0, "failures": 0, "skipped": 0}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        for name in totals:
            totals[name] += int(suite.get(name, "0"))
    failed = totals["errors"] + totals["failures"]
    # A test that fails and then fails to clean up counts twice among the failures, once among the tests.
    return max(0, totals["tests"] - failed - totals["skipped"]), failed, totals["skipped"]


if __name__ == "__main__":
    sys.exit(main())
