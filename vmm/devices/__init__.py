"""The objects of libstrato_vmm.so: virtio devices of our own, and the machine on KVM.

Three layers, as in ``vmm.sys``: the C header (``vmm/native/abi/include/strato_vmm.h``), `vmm.devices.calls`
(one to one, checked), and the objects here. Importing loads the library, compares versions and struct sizes
(LibraryMismatchError), and costs less than 3 ms. Only ``vmm.backends`` and engines import this.
"""

from ..libraries import LibraryMismatchError, NativeBugError
from .calls import LIBRARY_TAG
from .device import (
    BalloonDevice,
    BalloonInfo,
    BlockDevice,
    ConsoleDevice,
    ConsolePort,
    Device,
    Limits,
    NetDevice,
    SharesDevice,
    VsockDevice,
    balloon,
    block,
    confine_threads,
    console,
    fs,
    net,
    rng,
    seal_threads,
    vsock,
)
from .events import DeviceEvent, DeviceEventKind, EventRing
from .machine import Machine, probe

__all__ = [
    "LIBRARY_TAG",
    "BalloonDevice",
    "BalloonInfo",
    "BlockDevice",
    "ConsoleDevice",
    "ConsolePort",
    "Device",
    "DeviceEvent",
    "DeviceEventKind",
    "EventRing",
    "LibraryMismatchError",
    "Limits",
    "Machine",
    "NativeBugError",
    "NetDevice",
    "SharesDevice",
    "VsockDevice",
    "balloon",
    "block",
    "confine_threads",
    "console",
    "fs",
    "net",
    "probe",
    "rng",
    "seal_threads",
    "vsock",
]
