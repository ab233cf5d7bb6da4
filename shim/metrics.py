"""Guest statistics -> containerd's Metrics message of the host's cgroup version.

Docker and CRI reject a message of the version the host does not have, whatever the guest uses (the guest's
cgroups are always v2). Pure but for `host_has_cgroup_v2`.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage

from .agent_proto.generated import agent_pb2
from .protos.generated import cgroups_v1_pb2, cgroups_v2_pb2

_V2_STAT_FIELDS = frozenset(field.name for field in cgroups_v2_pb2.MemoryStat.DESCRIPTOR.fields) - {
    "usage", "usage_limit", "swap_usage", "swap_limit", "max_usage",
}  # fmt: skip
_V2_EVENT_FIELDS = frozenset(field.name for field in cgroups_v2_pb2.MemoryEvents.DESCRIPTOR.fields)
_V1_UNLIMITED = (1 << 63) - 4096
"""What cgroup v1 shows for "no limit": the largest page-aligned signed number."""


def host_has_cgroup_v2() -> bool:
    """Whether the host's /sys/fs/cgroup is the unified hierarchy."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def metrics(stats: agent_pb2.StatsContainerResponse, *, cgroup_v2: bool) -> AnyMessage:
    """The answer of Stats."""
    message = _v2(stats) if cgroup_v2 else _v1(stats)
    # typeurl's form for these types: the bare full name.
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def _v2(stats: agent_pb2.StatsContainerResponse) -> cgroups_v2_pb2.Metrics:
    out = cgroups_v2_pb2.Metrics()
    out.pids.current = stats.pids.current
    out.pids.limit = stats.pids.limit
    cpu = stats.cpu
    out.cpu.usage_usec = cpu.usage_usec
    out.cpu.user_usec = cpu.user_usec
    out.cpu.system_usec = cpu.system_usec
    out.cpu.nr_periods = cpu.nr_periods
    out.cpu.nr_throttled = cpu.nr_throttled
    out.cpu.throttled_usec = cpu.throttled_usec
    memory = stats.memory
    for name in _V2_STAT_FIELDS & memory.stat.keys():
        setattr(out.memory, name, memory.stat[name])
    out.memory.usage = memory.usage
    out.memory.usage_limit = memory.usage_limit
    out.memory.swap_usage = memory.swap_usage
    out.memory.swap_limit = memory.swap_limit
    out.memory.max_usage = memory.peak
    for name in _V2_EVENT_FIELDS & memory.events.keys():
        setattr(out.memory_events, name, memory.events[name])
    for entry in stats.io:
        out.io.usage.add(
            major=entry.major, minor=entry.minor, rbytes=entry.rbytes, wbytes=entry.wbytes,
            rios=entry.rios, wios=entry.wios,
        )  # fmt: skip
    for interface in stats.interfaces:
        _copy_interface(interface, out.network.add())
    return out


def _v1(stats: agent_pb2.StatsContainerResponse) -> cgroups_v1_pb2.Metrics:
    out = cgroups_v1_pb2.Metrics()
    out.pids.current = stats.pids.current
    out.pids.limit = stats.pids.limit
    out.cpu.usage.total = stats.cpu.usage_usec * 1000
    out.cpu.usage.user = stats.cpu.user_usec * 1000
    out.cpu.usage.kernel = stats.cpu.system_usec * 1000
    out.cpu.throttling.periods = stats.cpu.nr_periods
    out.cpu.throttling.throttled_periods = stats.cpu.nr_throttled
    out.cpu.throttling.throttled_time = stats.cpu.throttled_usec * 1000
    _v1_memory(stats.memory, out.memory)
    out.memory_oom_control.oom_kill = stats.memory.events.get("oom_kill", 0)
    for entry in stats.io:
        for op, size, count in (("Read", entry.rbytes, entry.rios), ("Write", entry.wbytes, entry.wios)):
            out.blkio.io_service_bytes_recursive.add(op=op, major=entry.major, minor=entry.minor, value=size)
            out.blkio.io_serviced_recursive.add(op=op, major=entry.major, minor=entry.minor, value=count)
    for interface in stats.interfaces:
        _copy_interface(interface, out.network.add())
    return out


def _v1_memory(memory: agent_pb2.MemoryStats, out: cgroups_v1_pb2.MemoryStat) -> None:
    # v2 file -> v1 file; kernel: Documentation/admin-guide/cgroup-v1/memory.rst section 5.2
    names = {
        "file": "cache", "anon": "rss", "anon_thp": "rss_huge", "file_mapped": "mapped_file",
        "file_dirty": "dirty", "file_writeback": "writeback", "pgfault": "pg_fault",
        "pgmajfault": "pg_maj_fault", "inactive_anon": "inactive_anon", "active_anon": "active_anon",
        "inactive_file": "inactive_file", "active_file": "active_file", "unevictable": "unevictable",
    }  # fmt: skip
    for v2_name, v1_name in names.items():
        value = memory.stat.get(v2_name, 0)
        setattr(out, v1_name, value)
        setattr(out, f"total_{v1_name}", value)
    limit = min(memory.usage_limit, _V1_UNLIMITED)
    out.hierarchical_memory_limit = limit
    out.usage.usage = memory.usage
    out.usage.limit = limit
    out.usage.max = memory.peak
    # v1 counts memory and swap together.
    out.swap.usage = memory.usage + memory.swap_usage
    out.swap.limit = min(memory.usage_limit + memory.swap_limit, _V1_UNLIMITED)


def _copy_interface(
    source: agent_pb2.InterfaceStats, target: cgroups_v1_pb2.NetworkStat | cgroups_v2_pb2.NetworkStat
) -> None:
    for field in source.DESCRIPTOR.fields:
        setattr(target, field.name, getattr(source, field.name))
