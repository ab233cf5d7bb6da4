"""The calls of libstrato_sys.so one to one, checked: the only module that sees cffi's objects.

Loads the library at import and refuses one that does not belong to this package. Every function raises the
OSError of `vmm.sys.errors` with the library's own sentence. cffi lets other threads run during every call.

The header ``vmm/native/sys/include/strato_sys.h`` describes each call; nothing is said twice here.
"""

from __future__ import annotations

import os

from ..libraries import last_error, load
from ._strato_sys import ffi as _generated_ffi
from .errors import native_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

ffi: Any = _generated_ffi
"""cffi's types cannot know the declarations of the header."""

ABI_VERSION = 1
"""The interface number that this module is written for."""

_STRUCTS = (
    "path",
    "mount_attr",
    "tap_config",
    "tsc_reading",
    "pump_stream",
    "pump_event",
    "pump_stats_result",
)

NO_LIMIT = 2**64 - 1
"""``limit`` of a stream without one."""

_EVENT_BATCH = 64


_lib = load(ffi, "strato_sys", ABI_VERSION, _STRUCTS)


def _check(code: int) -> None:
    if code < 0:
        raise native_error(-code, last_error(ffi, _lib.strato_sys_last_error))


def _path(value: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a path; an embedded NUL would silently cut it in C."""
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError(f"Path {value!r} contains a NUL byte")
    return raw


def _optional(value: str | os.PathLike[str] | None) -> Any:
    return ffi.NULL if value is None else ffi.from_buffer("char[]", _path(value) + b"\0")


def _sized(kind: str) -> Any:
    place = ffi.new(f"{kind} *")
    place.size = ffi.sizeof(kind)
    return place


def unshare(flags: int) -> None:
    _check(_lib.strato_sys_unshare(flags))


def setns(fd: int, nstype: int) -> None:
    _check(_lib.strato_sys_setns(fd, nstype))


def set_child_subreaper(enable: bool) -> None:
    _check(_lib.strato_sys_set_child_subreaper(enable))


def set_parent_death_signal(signal: int) -> None:
    _check(_lib.strato_sys_set_parent_death_signal(signal))


def close_range(first: int, last: int, flags: int) -> None:
    _check(_lib.strato_sys_close_range(first, last, flags))


def set_process_name(name: str) -> None:
    _check(_lib.strato_sys_set_process_name(_path(name)))


def forbid_gains() -> None:
    _check(_lib.strato_sys_forbid_gains())


def restrict_paths(paths: Sequence[tuple[str, int]]) -> int:
    # The structs hold pointers only: what they point to has to live as long.
    texts = [ffi.from_buffer("char[]", _path(path) + b"\0") for path, _ in paths]
    array = ffi.new("strato_sys_path[]", len(paths))
    for place, text, (_, use) in zip(array, texts, paths, strict=True):
        place.path, place.use = text, use
    ret = ffi.new("uint32_t *")
    _check(_lib.strato_sys_restrict_paths(array, len(paths), ret))
    return int(ret[0])


def confine_control(forbidden: int) -> None:
    _check(_lib.strato_sys_confine_control(forbidden))


def set_dumpable(enable: bool) -> None:
    _check(_lib.strato_sys_set_dumpable(enable))


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    fstype: str | None,
    flags: int,
    data: str | None,
) -> None:
    _check(_lib.strato_sys_mount(_optional(source), _path(target), _optional(fstype), flags, _optional(data)))


def umount(target: str | os.PathLike[str], flags: int) -> None:
    _check(_lib.strato_sys_umount(_path(target), flags))


def open_tree(dirfd: int, path: str | os.PathLike[str], flags: int) -> int:
    ret = ffi.new("int32_t *")
    _check(_lib.strato_sys_open_tree(dirfd, _path(path), flags, ret))
    return int(ret[0])


def move_mount(
    from_dirfd: int,
    from_path: str | os.PathLike[str],
    to_dirfd: int,
    to_path: str | os.PathLike[str],
    flags: int,
) -> None:
    _check(_lib.strato_sys_move_mount(from_dirfd, _path(from_path), to_dirfd, _path(to_path), flags))


def mount_setattr(
    dirfd: int, path: str | os.PathLike[str], flags: int, attr: tuple[int, int, int, int]
) -> None:
    place = _sized("strato_sys_mount_attr")
    place.attr_set, place.attr_clr, place.propagation, place.userns_fd = attr
    _check(_lib.strato_sys_mount_setattr(dirfd, _path(path), flags, place))


def pivot_root(new_root: str | os.PathLike[str], put_old: str | os.PathLike[str]) -> None:
    _check(_lib.strato_sys_pivot_root(_path(new_root), _path(put_old)))


def open_tap(netns_fd: int, name: str, mtu: int, up: bool) -> int:
    config = _sized("strato_sys_tap_config")
    text = ffi.from_buffer("char[]", _path(name) + b"\0")
    config.netns_fd, config.name, config.mtu, config.up = netns_fd, text, mtu, up
    ret = ffi.new("int32_t *")
    _check(_lib.strato_sys_open_tap(config, ret))
    return int(ret[0])


def netlink_socket(netns_fd: int) -> int:
    ret = ffi.new("int32_t *")
    _check(_lib.strato_sys_netlink_socket(netns_fd, ret))
    return int(ret[0])


def tsc(method: int) -> tuple[int, int]:
    """Return (method, kHz)."""
    ret = _sized("strato_sys_tsc_reading")
    _check(_lib.strato_sys_tsc(method, ret))
    return int(ret.method), int(ret.khz)


def pump_create() -> Any:
    ret = ffi.new("strato_sys_pump **")
    _check(_lib.strato_sys_pump_create(ret))
    return ret[0]


def pump_destroy(pump: Any) -> None:
    _lib.strato_sys_pump_destroy(pump)


def pump_event_fd(pump: Any) -> int:
    ret = ffi.new("int32_t *")
    _check(_lib.strato_sys_pump_event_fd(pump, ret))
    return int(ret[0])


def pump_add(pump: Any, fds: tuple[int, int], tag: int, limit: int, flags: int) -> int:
    stream = _sized("strato_sys_pump_stream")
    (stream.src_fd, stream.dst_fd), stream.tag, stream.limit, stream.flags = fds, tag, limit, flags
    ret = ffi.new("uint64_t *")
    _check(_lib.strato_sys_pump_add(pump, stream, ret))
    return int(ret[0])


def pump_set_limit(pump: Any, handle: int, total: int) -> None:
    _check(_lib.strato_sys_pump_set_limit(pump, handle, total))


def pump_stats(pump: Any, handle: int) -> tuple[int, int, int]:
    """Return (bytes moved, bytes read, state)."""
    ret = _sized("strato_sys_pump_stats_result")
    _check(_lib.strato_sys_pump_stats(pump, handle, ret))
    return int(ret.bytes_moved), int(ret.bytes_read), int(ret.state)


def pump_remove(pump: Any, handle: int) -> None:
    _check(_lib.strato_sys_pump_remove(pump, handle))


def pump_events(pump: Any) -> list[tuple[int, int, int, int, int]]:
    """Return (tag, handle, kind, bytes, errno) of every waiting event."""
    buffer = ffi.new("strato_sys_pump_event[]", _EVENT_BATCH)
    count = ffi.new("size_t *")
    events: list[tuple[int, int, int, int, int]] = []
    while True:
        _check(_lib.strato_sys_pump_events(pump, buffer, _EVENT_BATCH, count))
        found = count[0]
        events += [(e.tag, e.handle, e.kind, e.bytes, e.error) for e in buffer[0:found]]
        if found < _EVENT_BATCH:
            return events
