"""What each engine adds to a machine, and what of a configuration it cannot do.

Asked before a machine is planned, by strato-vmm and by `strato vm plan`; no engine needs to exist for it.
"""

from __future__ import annotations

from ..boards.base import EngineTraits
from ..config import EngineName, MemoryBackend, VmConfig
from ..errors import ConfigError
from ..log import Log

KVM_SLOTS = 32

_KVM_ARGUMENTS = [
    "reboot=a",  # by the register that ACPI names, so that a reset is told from a triple fault
    "pci=off",
]
_NO_SERIAL_ARGUMENT = "8250.nr_uarts=0"  # or the driver looks for ports that are not there

_TCG_ARGUMENTS = ["reboot=t"]  # triple fault: the shortest way to a reset


def traits(engine: EngineName, config: VmConfig, log: Log) -> EngineTraits:
    """Return what the engine is like. Raises ConfigError for what it cannot do, HostError."""
    if engine is EngineName.KVM:
        return _kvm(config)
    return _tcg(config, log)


def _kvm(config: VmConfig) -> EngineTraits:
    programs = config.programs
    for name, program in (
        ("virtiofsd", programs.virtiofsd),
        ("vhost_device_vsock", programs.vhost_device_vsock),
    ):
        if program is not None:
            raise ConfigError(
                f"programs.{name}",
                f"{program} cannot serve engine kvm, which has its devices in strato-vmm: "
                "remove it, or set engine to tcg",
            )
    arguments = list(_KVM_ARGUMENTS)
    if config.serial.log is None:
        arguments.append(_NO_SERIAL_ARGUMENT)
    return EngineTraits(
        engine=EngineName.KVM,
        max_slots=KVM_SLOTS,
        kernel_arguments=tuple(arguments),
        own_layout=False,
        balloon=True,
    )


def _tcg(config: VmConfig, log: Log) -> EngineTraits:
    from . import host_clock, qemu_arguments

    khz = config.cpu.tsc_khz or host_clock.tsc_khz(log)
    memory = config.memory
    for path, wanted in (
        ("memory.backend", memory.backend not in (MemoryBackend.AUTO, MemoryBackend.MEMFD)),
        ("memory.huge_pages", memory.huge_pages),
        ("memory.prealloc", memory.prealloc),
        ("serial.log", config.serial.log is not None),
    ):
        if wanted:
            raise ConfigError(path, "Engine tcg does not offer this: remove it, or set engine to kvm")
    return EngineTraits(
        engine=EngineName.TCG,
        max_slots=qemu_arguments.MAX_SLOTS,
        kernel_arguments=(*_TCG_ARGUMENTS, *host_clock.guest_arguments(khz)),
        own_layout=True,
        balloon=False,
    )
