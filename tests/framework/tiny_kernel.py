"""Kernels of a few instructions, for tests of the machine on KVM without Linux.

They are entered by PVH: 32 bits, no paging, flat segments (xen/include/public/arch-x86/hvm/start_info.h).
KVM runs them even on hosts where it cannot run an unmodified kernel.
"""

import os
import struct

ADDRESS = 1 << 20
"""Where the code is in RAM."""

_NOTES = 176
_TEXT = 256
_PT_LOAD, _PT_NOTE = 1, 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18


def elf(code: bytes) -> bytes:
    """Return an ELF file that loads ``code`` at `ADDRESS` and begins there."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ADDRESS, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", _PT_NOTE, 4, _NOTES, 0, 0, 20, 20, 4)
    header += struct.pack("<IIQQQQQQ", _PT_LOAD, 7, _TEXT, ADDRESS, ADDRESS, len(code), len(code), 4)
    note = struct.pack("<III4sI", 4, 4, _XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", ADDRESS)
    return (header + note).ljust(_TEXT, b"\0") + code


def memfd(code: bytes) -> int:
    """Return a descriptor of such a file, which is the caller's to close."""
    fd = os.memfd_create("tiny-kernel")
    os.write(fd, elf(code))
    return fd


def out(port: int, value: int) -> bytes:
    """Return code that writes a byte to a port."""
    return b"\xba" + struct.pack("<I", port) + b"\xb0" + bytes([value]) + b"\xee"


SPIN = b"\xeb\xfe"
"""Code that jumps to itself."""
TRIPLE_FAULT = b"\x0f\x0b"
"""An undefined instruction; there is no interrupt table."""
