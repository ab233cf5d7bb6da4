"""What engines add to a machine, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vmm.test_boards import CONFIG
from vmm.config import (
    CpuConfig,
    EngineName,
    JailConfig,
    MemoryBackend,
    MemoryConfig,
    ProgramsConfig,
    SerialConfig,
)
from vmm.engines.traits import traits
from vmm.errors import ConfigError
from vmm.log import Level, Log

pytestmark = pytest.mark.unit

LOG = Log(Level.ERROR)


def test_kvm_tells_resets_from_triple_faults_and_tcg_has_its_clock_given() -> None:
    kvm = traits(EngineName.KVM, CONFIG, LOG)
    tcg = traits(EngineName.TCG, CONFIG, LOG)

    assert {"reboot=a", "pci=off", "8250.nr_uarts=0"} <= set(kvm.kernel_arguments)
    assert "reboot=t" in tcg.kernel_arguments
    assert any(argument.startswith("tsc_early_khz=") for argument in tcg.kernel_arguments)
    assert (kvm.max_slots, kvm.own_layout, kvm.balloon) == (32, False, True)
    assert (tcg.max_slots, tcg.own_layout, tcg.balloon) == (23, True, False)


def test_kvm_lets_the_kernel_look_for_a_serial_port_that_is_there() -> None:
    config = replace(CONFIG, serial=SerialConfig(log=Path("/run/vm/serial")))

    assert "8250.nr_uarts=0" not in traits(EngineName.KVM, config, LOG).kernel_arguments


@pytest.mark.parametrize("name", ["virtiofsd", "vhost_device_vsock"])
def test_kvm_has_no_use_for_device_programs(name: str) -> None:
    programs = ProgramsConfig(**{name: Path("/program")})
    config = replace(CONFIG, programs=programs, jail=JailConfig(enabled=False))

    with pytest.raises(ConfigError, match=rf"programs\.{name}: /program cannot serve engine kvm"):
        traits(EngineName.KVM, config, LOG)
    assert traits(EngineName.TCG, config, LOG).engine is EngineName.TCG


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"memory": MemoryConfig(backend=MemoryBackend.ANONYMOUS)}, "memory.backend"),
        ({"memory": MemoryConfig(backend=MemoryBackend.FILE, file=Path("/ram"))}, "memory.backend"),
        ({"memory": MemoryConfig(huge_pages=True)}, "memory.huge_pages"),
        ({"memory": MemoryConfig(prealloc=True)}, "memory.prealloc"),
        ({"serial": SerialConfig(log=Path("/run/vm/serial"))}, "serial.log"),
    ],
)
def test_tcg_refuses_by_path_what_kvm_takes(changes: dict[str, Any], path: str) -> None:
    config = replace(CONFIG, **changes)

    with pytest.raises(ConfigError) as caught:
        traits(EngineName.TCG, config, LOG)

    assert caught.value.json_path == path
    assert traits(EngineName.KVM, config, LOG).engine is EngineName.KVM


def test_tcg_believes_the_configuration_about_the_clock() -> None:
    config = replace(CONFIG, cpu=CpuConfig(tsc_khz=2_000_123))

    assert "tsc_early_khz=2000123" in traits(EngineName.TCG, config, LOG).kernel_arguments


def test_tcg_takes_the_memory_that_it_has_anyway() -> None:
    config = replace(CONFIG, memory=MemoryConfig(backend=MemoryBackend.MEMFD))

    assert traits(EngineName.TCG, config, LOG).engine is EngineName.TCG
