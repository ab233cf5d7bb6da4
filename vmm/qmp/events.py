"""Building QMP events."""

from __future__ import annotations

import time
from collections.abc import Mapping

from .protocol import Message

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

# What QEMU documents as the members of each event; anything else an engine adds stays inside.
_MEMBERS = {
    "SHUTDOWN": ("guest", "reason"),
    "RESET": ("guest", "reason"),
    "GUEST_PANICKED": ("action", "info"),
    "GUEST_CRASHLOADED": ("action", "info"),
    "DEVICE_DELETED": ("device", "path"),
    "BALLOON_CHANGE": ("actual",),
}


def event(name: str, data: Mapping[str, Any]) -> Message:
    """Return an event message stamped with the present time."""
    now_us = time.time_ns() // 1000
    message: Message = {
        "timestamp": {"seconds": now_us // 1_000_000, "microseconds": now_us % 1_000_000},
        "event": name,
    }
    members = {key: data[key] for key in _MEMBERS.get(name, ()) if key in data}
    if members:
        message["data"] = members
    return message
