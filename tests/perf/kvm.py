"""Whether a group that needs KVM can run here."""

from vmm.config import EngineName
from vmm.engines import probe
from vmm.log import Level, Log

from .report import say


def usable(group: str) -> bool:
    """Whether there is a usable KVM; otherwise says how to run the group where there is one."""
    verdict = probe.verdict(Log(Level.ERROR))
    if verdict.engine is EngineName.KVM:
        return True
    say(f"left out, since there is no usable KVM here ({verdict.reason}); in the lab:")
    say(f"  python -m tests.lab --deadline 7200 -- python -m tests.perf --only {group}")
    return False
