"""The frequency of the host's time-stamp counter, which a guest under TCG sees as its own.

Measuring takes a while, so the value is cached per boot. Used by the tcg engine; the cache is trusted
only when root (or we ourselves) own it.
"""

import json
import os
from pathlib import Path

from ..errors import HostError
from ..log import Log

CACHE = Path("/run/strato/host-clock.json")
GUEST_HZ = 250
"""Jiffies per second of the guest kernel (CONFIG_HZ in rootfs/kernel/fragments/time.config)."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
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
    )


def tsc_khz(log: Log, cache: Path = CACHE) -> int:
    """Return the TSC frequency in kHz. Raises HostError when it cannot be found out."""
    try:
        boot_id = _BOOT_ID.read_text().strip()
    except FileNotFoundError:
        boot_id = ""  # in the jail, where whoever starts strato-vmm tells it the frequency
    known = _read_cache(cache, boot_id)
    if known is not None:
        return known
    try:
        from ..sys import tsc_khz as measure  # loads a library: only where there is no cached value

        value = measure()
    except (ImportError, OSError) as error:
        log.warn("TSC frequency taken from /proc/cpuinfo: guest clock may drift", cause=error)
        return _nominal_khz(error)
    _write_cache(cache, boot_id, value, log)
    return value


def _nominal_khz(cause: BaseException) -> int:
    for line in _CPUINFO.read_text().splitlines():
        if line.startswith("cpu MHz"):
            return round(float(line.split(":", 1)[1]) * 1000)
    raise HostError(f"TSC frequency is unknown: {_CPUINFO} does not tell; build libstrato_sys") from cause


def _read_cache(cache: Path, boot_id: str) -> int | None:
    try:
        with cache.open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid not in (0, os.geteuid()):
                return None
            document = json.loads(stream.read(4096))
        value = document["tsc_khz"]
        return value if document["boot_id"] == boot_id and type(value) is int and value > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no cache, or a broken one: measure


def _write_cache(cache: Path, boot_id: str, value: int, log: Log) -> None:
    if not boot_id:
        return
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"boot_id": boot_id, "tsc_khz": value}))
        temporary.replace(cache)
    except OSError as error:
        log.debug("TSC frequency not cached", cause=error)
