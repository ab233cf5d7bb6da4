"""The frequency of the host's time-stamp counter, which a guest under TCG sees as its own.

Measuring takes a while, so the value is cached per boot. Used by the tcg engine.
"""

from pathlib import Path

from .. import boot_cache
from ..errors import HostError
from ..log import Log

CACHE = Path("/run/strato/host-clock.json")
GUEST_HZ = 250
"""Jiffies per second of the guest kernel (CONFIG_HZ in rootfs/kernel/fragments/time.config)."""
APIC_TIMER_KHZ = 1_000_000
"""Input clock of the local APIC timer: QEMU's counts virtual nanoseconds (hw/intc/apic_common.c)."""

_CPUINFO = Path("/proc/cpuinfo")


def guest_arguments(khz: int) -> tuple[str, ...]:
    """Return what a guest under TCG must be told of a counter of ``khz`` kHz."""
    return (
        # Without it the guest calibrates its TSC against timers that this machine does not have.
        f"tsc_early_khz={khz}",
        # Emulated processors do not announce a constant TSC, so each but the first would measure its delay
        # loop anew: up to 0.2 s.
        f"lpj={khz * 1000 // GUEST_HZ}",
        # It is the host's counter on every processor, and there is no other clock to fall back to.
        "tsc=reliable",
        # Read by a file of our own in the guest kernel (rootfs/kernel/sources); another kernel calibrates.
        f"strato.apic_timer_khz={APIC_TIMER_KHZ}",
    )


def tsc_khz(log: Log, cache: Path = CACHE) -> int:
    """Return the TSC frequency in kHz. Raises HostError when it cannot be found out."""
    known = boot_cache.read(cache).get("tsc_khz")
    if type(known) is int and known > 0:
        return known
    try:
        from ..sys import tsc_khz as measure  # loads a library: only where there is no cached value

        value = measure()
    except (ImportError, OSError) as error:
        log.warn("TSC frequency taken from /proc/cpuinfo: guest clock may drift", cause=error)
        return _nominal_khz(error)
    boot_cache.write(cache, {"tsc_khz": value}, log)
    return value


def _nominal_khz(cause: BaseException) -> int:
    for line in _CPUINFO.read_text().splitlines():
        if line.startswith("cpu MHz"):
            return round(float(line.split(":", 1)[1]) * 1000)
    raise HostError(f"TSC frequency is unknown: {_CPUINFO} does not tell; build libstrato_sys") from cause
