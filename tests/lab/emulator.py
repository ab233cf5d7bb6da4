"""What only the emulator can have done to a test host: no failure of the test that met it."""

import re

# Of a stack, innermost first: the entry of an interrupt, and where it came from.
_BEHIND_VMRUN = re.compile(r"\basm_(sysvec|common_interrupt)\S*\n.*\bRIP: \S*__svm_vcpu_run\+")


def fault(console: str) -> str | None:
    """Return what the emulator did, if the test host's last words show it.

    Between VMRUN's exit and STGI no interrupt is taken (AMD64 Architecture Programmer's Manual, volume 2,
    15.17), and KVM relies on it: GS is the guest's until then. QEMU 7.2 has been seen to deliver the timer's
    there, once in some hours of guests that run; the kernel faults until its stack is full.
    """
    if _BEHIND_VMRUN.search(console):
        return "took an interrupt right behind VMRUN, where a processor takes none"
    return None
