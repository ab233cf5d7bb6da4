"""The objects of libstrato_vmm.so: virtio devices of our own, served to an engine over vhost-user.

Three layers, as in ``vmm.sys``: the C header (``vmm/native/abi/include/strato_vmm.h``), `vmm.devices.calls`
(one to one, checked), and the objects here. Importing loads the library, compares versions and struct sizes
(LibraryMismatchError), and costs less than 3 ms. Only ``vmm.backends`` and engines import this.
"""

from ..libraries import LibraryMismatchError, NativeBugError
from .calls import LIBRARY_TAG
from .device import (
    BlockDevice,
    Device,
    Limits,
    NetDevice,
    SharesDevice,
    block,
    confine_threads,
    fs,
    net,
    rng,
    vsock,
)
from .events import DeviceEvent, DeviceEventKind, EventRing

__all__ = [
    "LIBRARY_TAG",
    "BlockDevice",
    "Device",
    "DeviceEvent",
    "DeviceEventKind",
    "EventRing",
    "LibraryMismatchError",
    "Limits",
    "NativeBugError",
    "NetDevice",
    "SharesDevice",
    "block",
    "confine_threads",
    "fs",
    "net",
    "rng",
    "vsock",
]
