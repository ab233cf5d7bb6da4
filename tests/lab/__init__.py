"""The KVM lab: a test host with a working /dev/kvm on any machine that can run QEMU.

QEMU's emulator knows AMD's virtualization with nested paging, so a Linux under it has a real kvm-amd: slow
(guest code runs at about a fifteenth of the machine's speed) and exact in what it does.

LabError
├── LabSetUpError    the test host cannot be started: something is not built or not installed
└── LostHostError    the test host died, froze or ran out of time before its command had ended
    └── EmulatorError   by the doing of the emulator, and of nothing that ran on it
"""


class LabError(Exception):
    """Base of what goes wrong with a test host. That its command fails is no error but a status."""


class LabSetUpError(LabError):
    """The test host cannot be started."""


class LostHostError(LabError):
    """The test host was lost; the text holds the end of its console."""


class EmulatorError(LostHostError):
    """Only the emulator can have done this. A vCPU gave no sign of life any more: QEMU before 8.1 may keep
    the translation of code that the kernel is patching, and the processor meets the patch's int3 for ever. Or
    it is what `emulator.fault` knows of.
    """
