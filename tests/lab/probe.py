"""`python -m tests.lab.probe`: looks at the test host from inside and writes down what it finds, as JSON in
`$STRATO_LAB_RESULTS/probe.json`. Run by test_machine.py; judges nothing.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.framework.runtime import CHECKOUT
from tools import bare_boot
from tools.cache import Cache
from vmm import paths

from .settings import RESULTS_VARIABLE

KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h
WRITTEN = CHECKOUT / "written-in-the-lab"
STATUS = 7


def main() -> int:
    """Writes the findings; the status is one that nothing else gives."""
    with Path("/dev/kvm").open("rb") as kvm:
        version = fcntl.ioctl(kvm, KVM_GET_API_VERSION)
    boot = bare_boot.boot(paths.kernel().resolve(), bare_boot.probe_image(Cache()), kvm=True)
    WRITTEN.write_text("gone in the end")
    findings = {
        "kvm_api_version": version,
        "boot": boot.console,
        "clock": Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip(),
        "controllers": Path("/sys/fs/cgroup/cgroup.controllers").read_text().split(),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "written": WRITTEN.read_text(),
        **_machine(),
        "module": _words("modprobe", "--first-time", "act_mirred"),
        "user_namespace": _words("unshare", "--user", "--map-root-user", "id", "-u"),
    }
    (Path(os.environ[RESULTS_VARIABLE]) / "probe.json").write_text(json.dumps(findings))
    print("probe done")  # noqa: T201
    return STATUS


def _machine() -> dict[str, str]:
    """What a write to the machine's own files answers, past the overlay and with their mount writable."""
    mount_point = Path("/run/machine")
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "virtiofs", "machine", mount_point], check=True)
    subprocess.run(["mount", "-o", "remount,rw", mount_point], check=True)
    (mounted,) = (
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "machine rw" in line
    )
    answer = _error(lambda: (mount_point / WRITTEN.relative_to("/")).write_text("damage"))
    return {"machine_mount": mounted, "machine_answer": answer}


def _error(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return "nothing"


def _words(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout.strip()}{done.stderr.strip()}".strip()


if __name__ == "__main__":
    sys.exit(main())
