"""The engine under test: `STRATO_TEST_ENGINE=kvm` (or tcg) makes the tests' VMs and shims use that one.

Without it they use what `auto` means on this host. The KVM lab sets it to kvm (tests/lab).
"""

import os
from collections.abc import Mapping

from vmm.config import EngineName
from vmm.engines import probe
from vmm.log import Level, Log

VARIABLE = "STRATO_TEST_ENGINE"
EMULATED_VARIABLE = "STRATO_TEST_KVM_EMULATED"
"""Set by the lab: the processor below KVM is an emulated one."""


def wanted_engine(environment: Mapping[str, str] = os.environ) -> EngineName:
    """What the tests' configurations ask for. Raises ValueError for a word that is no engine."""
    return EngineName(environment.get(VARIABLE, EngineName.AUTO))


def kvm_is_emulated(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether KVM here stands on a processor that QEMU emulates."""
    return bool(environment.get(EMULATED_VARIABLE))


def engine_in_use() -> EngineName:
    """What runs the tests' VMs on this host: tcg or kvm."""
    wanted = wanted_engine()
    return probe.verdict(Log(Level.ERROR)).engine if wanted is EngineName.AUTO else wanted
