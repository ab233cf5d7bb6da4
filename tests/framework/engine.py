"""The engine under test: `STRATO_TEST_ENGINE=kvm` (or tcg) makes the tests' VMs and shims use that one.

Without it they use what `auto` means on this host. The KVM lab sets it to kvm (tests/lab).
"""

import os
from collections.abc import Mapping

from vmm.config import EngineName
from vmm.engines import probe
from vmm.log import Level, Log

VARIABLE = "STRATO_TEST_ENGINE"


def wanted_engine(environment: Mapping[str, str] = os.environ) -> EngineName:
    """What the tests' configurations ask for. Raises ValueError for a word that is no engine."""
    return EngineName(environment.get(VARIABLE, EngineName.AUTO))


def engine_in_use() -> EngineName:
    """What runs the tests' VMs on this host: tcg or kvm."""
    wanted = wanted_engine()
    return probe.verdict(Log(Level.ERROR)).engine if wanted is EngineName.AUTO else wanted
