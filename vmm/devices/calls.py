"""The calls of libstrato_vmm.so one to one, checked: the only module that sees cffi's objects.

Loads the library at import and refuses one that does not belong to this package. Every function raises an
OSError of `vmm.libraries` with the library's own sentence. cffi lets other threads run during every call.

The header ``vmm/native/abi/include/strato_vmm.h`` describes each call; nothing is said twice here.
"""

from __future__ import annotations

import os

from ..libraries import last_error, load, native_error
from ._strato_vmm import ffi as _generated_ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

ffi: Any = _generated_ffi
"""cffi's types cannot know the declarations of the header."""

ABI_VERSION = 1
"""The interface number that this module is written for."""

LIBRARY_TAG = 2**64 - 1
"""Tag of events that belong to no device."""

_STRUCTS = (
    "event",
    "metric",
    "limits",
    "rng_config",
    "vsock_config",
    "block_config",
    "fs_config",
    "fs_share",
    "net_config",
    "console_port",
    "console_config",
    "balloon_config",
    "balloon_info",
    "machine_config",
    "memory_region",
    "memory_config",
    "platform_config",
    "slot_config",
    "boot_config",
)
_EVENT_BATCH = 16
_METRICS = 64
"""More counters than any device has; a longer list is asked for again."""
_TEXT_BYTES = 512
_CPUS = 64
"""More vCPUs than most machines have; a longer list is asked for again."""

_lib = load(ffi, "strato_vmm", ABI_VERSION, _STRUCTS)


def _check(code: int) -> None:
    if code < 0:
        raise native_error(-code, last_error(ffi, _lib.strato_vmm_last_error))


def _bytes(value: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a string; an embedded NUL would silently cut it in C."""
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError(f"{value!r} contains a NUL byte")
    return raw


def _text(value: str | os.PathLike[str]) -> Any:
    return ffi.from_buffer("char[]", _bytes(value) + b"\0")


def _sized(kind: str) -> Any:
    place = ffi.new(f"{kind} *")
    place.size = ffi.sizeof(kind)
    return place


def confine_threads(forbidden: int) -> None:
    _check(_lib.strato_vmm_confine_threads(forbidden))


def seal_threads() -> None:
    _check(_lib.strato_vmm_seal_threads())


def events_create() -> Any:
    ret = ffi.new("strato_vmm_events **")
    _check(_lib.strato_vmm_events_create(ret))
    return ret[0]


def events_destroy(events: Any) -> None:
    _lib.strato_vmm_events_destroy(events)


def events_fd(events: Any) -> int:
    ret = ffi.new("int32_t *")
    _check(_lib.strato_vmm_events_fd(events, ret))
    return int(ret[0])


def events_next(events: Any) -> list[tuple[int, int, int, str]]:
    """Return (tag, kind, count, text) of every waiting event."""
    buffer = ffi.new("strato_vmm_event[]", _EVENT_BATCH)
    count = ffi.new("size_t *")
    found: list[tuple[int, int, int, str]] = []
    while True:
        _check(_lib.strato_vmm_events_next(events, buffer, _EVENT_BATCH, count))
        taken = buffer[0 : count[0]]
        found += [(e.tag, e.kind, e.count, ffi.string(e.text).decode(errors="replace")) for e in taken]
        if count[0] < _EVENT_BATCH:
            return found


def rng_create(events: Any, tag: int, name: str, rate: int, burst: int) -> Any:
    config = _sized("strato_vmm_rng_config")
    config.rate, config.burst = rate, burst
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_rng_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def vsock_create(
    events: Any, tag: int, name: str, guest_cid: int, path: str | os.PathLike[str], max_connections: int
) -> Any:
    config = _sized("strato_vmm_vsock_config")
    text = _text(path)
    config.guest_cid, config.path, config.max_connections = guest_cid, text, max_connections
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_vsock_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def vsock_reset_transport(device: Any) -> None:
    _check(_lib.strato_vmm_vsock_reset_transport(device))


def block_create(
    events: Any,
    tag: int,
    name: str,
    fd: int,
    modes: tuple[int, int, int, int],
    serial: str | None,
    limits: tuple[int, int, int, int],
) -> Any:
    """``modes``: cache, read-only, engine, number of queues; ``limits``: as in the struct."""
    config = _sized("strato_vmm_block_config")
    config.fd = fd
    config.cache, config.readonly, config.engine, config.num_queues = modes
    text = ffi.NULL if serial is None else _text(serial)
    config.serial = text
    _set_limits(config.limits, limits)
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_block_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def block_resize(device: Any) -> int:
    ret = ffi.new("uint64_t *")
    _check(_lib.strato_vmm_block_resize(device, ret))
    return int(ret[0])


def block_grow(device: Any, size: int) -> int:
    ret = ffi.new("uint64_t *")
    _check(_lib.strato_vmm_block_grow(device, size, ret))
    return int(ret[0])


def block_set_limits(device: Any, limits: tuple[int, int, int, int]) -> None:
    place = ffi.new("strato_vmm_limits *")
    _set_limits(place, limits)
    _check(_lib.strato_vmm_block_set_limits(device, place))


def _set_limits(place: Any, limits: tuple[int, int, int, int]) -> None:
    place.bandwidth, place.bandwidth_burst, place.operations, place.operations_burst = limits


def fs_create(
    events: Any, tag: int, name: str, directory_fd: int, fs_tag: str, modes: tuple[int, int, int, int, int]
) -> Any:
    """``modes``: cache, read-only, writeback, remote locks, number of shares in the process."""
    config = _sized("strato_vmm_fs_config")
    text = _text(fs_tag)
    config.directory_fd, config.tag = directory_fd, text
    config.cache, config.readonly, config.writeback, config.remote_locks, config.shares = modes
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_fs_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def fs_add_share(device: Any, name: str, directory_fd: int, readonly: bool) -> None:
    share = _sized("strato_vmm_fs_share")
    text = _text(name)
    share.directory_fd, share.readonly, share.name = directory_fd, int(readonly), text
    _check(_lib.strato_vmm_fs_add_share(device, share))


def fs_remove_share(device: Any, name: str, timeout_ms: int) -> None:
    _check(_lib.strato_vmm_fs_remove_share(device, _bytes(name), timeout_ms))


def net_create(
    events: Any,
    tag: int,
    name: str,
    taps: Sequence[int] | str,
    modes: tuple[bytes, int, int],
    limits: tuple[tuple[int, int, int, int], tuple[int, int, int, int]],
) -> Any:
    """``modes``: MAC address, MTU, link; ``limits``: of what the guest receives and of what it sends."""
    config = _sized("strato_vmm_net_config")
    if isinstance(taps, str):
        kept = _text(taps)
        config.num_taps, config.tap_name = 1, kept
    else:
        kept = ffi.new("int32_t[]", list(taps))
        config.num_taps, config.tap_fds = len(taps), kept
    config.mac, config.mtu, config.link_up = modes
    for place, values in zip((config.receive_limits, config.transmit_limits), limits, strict=True):
        _set_limits(place, values)
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_net_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def net_set_link(device: Any, up: bool) -> None:
    _check(_lib.strato_vmm_net_set_link(device, up))


def net_set_limits(
    device: Any, receive: tuple[int, int, int, int] | None, transmit: tuple[int, int, int, int] | None
) -> None:
    places = [ffi.NULL, ffi.NULL]
    for index, values in enumerate((receive, transmit)):
        if values is not None:
            places[index] = ffi.new("strato_vmm_limits *")
            _set_limits(places[index], values)
    _check(_lib.strato_vmm_net_set_limits(device, *places))


def net_set_taps(device: Any, taps: Sequence[int]) -> None:
    _check(_lib.strato_vmm_net_set_taps(device, ffi.new("int32_t[]", list(taps)), len(taps)))


def console_create(
    events: Any,
    tag: int,
    name: str,
    ports: Sequence[tuple[str | None, int, int, int]],
    terminal: tuple[int, int],
) -> Any:
    """``ports``: name, input, output (-1: none), console; ``terminal``: columns, rows."""
    config = _sized("strato_vmm_console_config")
    array = ffi.new("strato_vmm_console_port[]", len(ports))
    names = [ffi.NULL if port[0] is None else _text(port[0]) for port in ports]
    for place, text, port in zip(array, names, ports, strict=True):
        place.name = text
        place.input_fd, place.output_fd, place.console = port[1:]
    config.num_ports, config.ports = len(ports), array
    config.columns, config.rows = terminal
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_console_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def console_resize(device: Any, columns: int, rows: int) -> None:
    _check(_lib.strato_vmm_console_resize(device, columns, rows))


def balloon_create(events: Any, tag: int, name: str, modes: tuple[int, int, int]) -> Any:
    """``modes``: deflate on OOM, reporting, seconds between statistics."""
    config = _sized("strato_vmm_balloon_config")
    config.deflate_on_oom, config.reporting, config.stats_interval_s = modes
    ret = ffi.new("strato_vmm_device **")
    _check(_lib.strato_vmm_balloon_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def balloon_set_target(device: Any, size: int) -> None:
    _check(_lib.strato_vmm_balloon_set_target(device, size))


def balloon_info(device: Any) -> tuple[tuple[int, int, int, int], int, list[int]]:
    """Return sizes (target, actual, reported, discarded), time of the last statistics, and these by tag."""
    ret = ffi.new("strato_vmm_balloon_info *")
    _check(_lib.strato_vmm_balloon_get_info(device, ret))
    sizes = (ret.target_bytes, ret.actual_bytes, ret.reported_bytes, ret.discarded_bytes)
    return (sizes, int(ret.updated_s), list(ret.stats))


def device_serve(device: Any, socket_fd: int) -> None:
    _check(_lib.strato_vmm_device_serve(device, socket_fd))


def device_metrics(device: Any) -> dict[str, int]:
    """Return the counters by name."""
    return _metrics(_lib.strato_vmm_device_metrics, device)


def _metrics(function: Any, handle: Any) -> dict[str, int]:
    capacity = _METRICS
    ret = ffi.new("size_t *")
    while True:
        buffer = ffi.new("strato_vmm_metric[]", capacity)
        _check(function(handle, buffer, capacity, ret))
        if ret[0] <= capacity:
            return {ffi.string(m.name).decode(): int(m.value) for m in buffer[0 : ret[0]]}
        capacity = ret[0]


def device_destroy(device: Any) -> None:
    _lib.strato_vmm_device_destroy(device)


def probe(kvm_fd: int) -> tuple[bool, str]:
    """Return whether this host's KVM is usable, and why or why not."""
    text = ffi.new("char[]", _TEXT_BYTES)
    ret = ffi.new("uint32_t *")
    _check(_lib.strato_vmm_probe(kvm_fd, text, _TEXT_BYTES, ret))
    return ret[0] == 1, ffi.string(text).decode(errors="replace")


def machine_create(
    events: Any, tag: int, name: str, kvm_fd: int, num_cpus: int, threads_per_core: int
) -> Any:
    config = _sized("strato_vmm_machine_config")
    config.kvm_fd, config.num_cpus, config.threads_per_core = kvm_fd, num_cpus, threads_per_core
    ret = ffi.new("strato_vmm_machine **")
    _check(_lib.strato_vmm_machine_create(events, tag, _bytes(name), config, ret))
    return ret[0]


def machine_add_memory(
    machine: Any, regions: Sequence[tuple[int, int]], fd: int, modes: tuple[int, int, int]
) -> None:
    """``regions``: guest address and bytes; ``modes``: backend, huge pages, prealloc."""
    config = _sized("strato_vmm_memory_config")
    places = ffi.new("strato_vmm_memory_region[]", list(regions))
    config.fd, config.num_regions, config.regions = fd, len(places), places
    config.backend, config.huge_pages, config.prealloc = modes
    _check(_lib.strato_vmm_machine_add_memory(machine, config))


def machine_add_platform(
    machine: Any,
    ged_gsi: int,
    ports: tuple[int, int],
    serial: tuple[int, int, int],
    addresses: tuple[int, int],
) -> None:
    """``ports``: pvpanic and power; ``serial``: port, GSI, output; ``addresses``: tables and generation."""
    config = _sized("strato_vmm_platform_config")
    config.ged_gsi = ged_gsi
    config.pvpanic_port, config.power_port = ports
    config.serial_port, config.serial_gsi, config.serial_fd = serial
    config.tables_addr, config.generation_addr = addresses
    _check(_lib.strato_vmm_machine_add_platform(machine, config))


def machine_add_slot(machine: Any, index: int, guest_addr: int, gsi: int) -> None:
    config = _sized("strato_vmm_slot_config")
    config.index, config.guest_addr, config.gsi = index, guest_addr, gsi
    _check(_lib.strato_vmm_machine_add_slot(machine, config))


def machine_plug(machine: Any, slot: int, device: Any) -> None:
    _check(_lib.strato_vmm_machine_plug(machine, slot, device))


def machine_unplug(machine: Any, slot: int) -> None:
    _check(_lib.strato_vmm_machine_unplug(machine, slot))


def machine_add_cpus(machine: Any) -> None:
    _check(_lib.strato_vmm_machine_add_cpus(machine))


def machine_load(machine: Any, kernel_fd: int, initrd_fd: int, entry: int, cmdline: str) -> None:
    config = _sized("strato_vmm_boot_config")
    text = _text(cmdline)
    config.kernel_fd, config.initrd_fd, config.entry, config.cmdline = kernel_fd, initrd_fd, entry, text
    _check(_lib.strato_vmm_machine_load(machine, config))


def machine_resume(machine: Any) -> None:
    _check(_lib.strato_vmm_machine_resume(machine))


def machine_pause(machine: Any, timeout_ms: int) -> None:
    _check(_lib.strato_vmm_machine_pause(machine, timeout_ms))


def machine_reset(machine: Any) -> None:
    _check(_lib.strato_vmm_machine_reset(machine))


def machine_power_button(machine: Any) -> None:
    _check(_lib.strato_vmm_machine_power_button(machine))


def machine_set_generation(machine: Any, guid: bytes) -> None:
    _check(_lib.strato_vmm_machine_set_generation(machine, ffi.from_buffer("uint8_t[16]", guid)))


def machine_cpus(machine: Any) -> list[int]:
    """Return the thread of each vCPU."""
    capacity = _CPUS
    ret = ffi.new("size_t *")
    while True:
        buffer = ffi.new("int32_t[]", capacity)
        _check(_lib.strato_vmm_machine_cpus(machine, buffer, capacity, ret))
        if ret[0] <= capacity:
            return list(buffer[0 : ret[0]])
        capacity = ret[0]


def machine_metrics(machine: Any) -> dict[str, int]:
    """Return the counters by name."""
    return _metrics(_lib.strato_vmm_machine_metrics, machine)


def machine_destroy(machine: Any) -> None:
    _lib.strato_vmm_machine_destroy(machine)
