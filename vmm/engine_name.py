"""The engines by their names, apart from the rest of a VmConfig for those who have no time for it."""

from enum import StrEnum


class EngineName(StrEnum):
    """What may be asked for; ``auto`` is resolved by `vmm.engines.probe`."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"
