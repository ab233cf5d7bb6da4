"""Kernels of a few instructions, as ELF files with a PVH note, for guests that must fail in a known way.

The entry (boot protocol PVH, xen/include/public/arch-x86/hvm/start_info.h) is 32-bit protected mode without
paging, interrupts off; ebx points to the start info.
"""

import os
import struct
from pathlib import Path

from vmm.config import EngineName

LOAD_ADDR = 0x10_0000
_ELF_HEADER, _PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_NOTE = 1, 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18  # xen/include/public/elfnote.h

# ud2: an exception for which there is no interrupt table
TRIPLE_FAULT = bytes.fromhex("0f0b f4")
# mov eax, 0xd0000000; jmp eax: instructions of an address where there is nothing
RUN_NOWHERE = bytes.fromhex("b8 000000d0 ffe0")
# mov edx, 0x505; mov al, 1; out dx, al; hlt: what a panicking Linux tells pvpanic
PANIC = bytes.fromhex("ba 05050000 b001 ee f4")
# mov edx, 0x603; mov al, 0x42; out dx, al; hlt: the reset register of board microvm
RESET = bytes.fromhex("ba 03060000 b042 ee f4")
# jmp $: a vCPU that never leaves the guest by itself
SPIN = bytes.fromhex("ebfe")
# cli; hlt
HALT = bytes.fromhex("faf4")
# mov edx, 0x505; mov al, 2; out dx, al; jmp $: one whose crash kernel takes over, which is this one
CRASH_LOADED = bytes.fromhex("ba 05050000 b002 ee ebfe")
WAIT_FOR_BUTTON = {
    # mov edx, 0x600; in al, dx; test al, 1; jz -5: the port of pending events (platform/power.rs), reading
    # takes them
    EngineName.KVM: bytes.fromhex("ba 00060000 ec a801 74fb"),
    # mov eax, [0xfea00000]; test al, 2; jz -9: the same of QEMU's board microvm (GED_MMIO_BASE and
    # ACPI_GED_PWR_DOWN_EVT in hw/i386/microvm.c, hw/acpi/generic_event_device.c)
    EngineName.TCG: bytes.fromhex("a1 0000a0fe a802 74f7"),
}
"""What goes on when the power button is pressed: somebody outside has begun to listen."""


def out(port: int, value: int) -> bytes:
    """Returns code that writes a byte to a port."""
    # mov edx, port; mov al, value; out dx, al
    return b"\xba" + struct.pack("<I", port) + b"\xb0" + bytes([value]) + b"\xee"


def elf(code: bytes) -> bytes:
    """Returns a kernel of these instructions."""
    note = struct.pack("<III4sI", 4, 4, _XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", LOAD_ADDR)
    headers = _ELF_HEADER.size + 2 * _PROGRAM_HEADER.size
    note_offset, code_offset = headers, 0x1000
    header = _ELF_HEADER.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        *(2, 62, 1),  # an executable for x86-64
        *(LOAD_ADDR, _ELF_HEADER.size, 0, 0),
        *(_ELF_HEADER.size, _PROGRAM_HEADER.size, 2, 0, 0, 0),
    )
    load = _PROGRAM_HEADER.pack(_PT_LOAD, 7, code_offset, LOAD_ADDR, LOAD_ADDR, len(code), len(code), 0x1000)
    notes = _PROGRAM_HEADER.pack(_PT_NOTE, 4, note_offset, 0, 0, len(note), len(note), 4)
    return (header + load + notes + note).ljust(code_offset, b"\0") + code


def write(path: Path, code: bytes) -> Path:
    """Writes such a kernel to a file and returns its path."""
    path.write_bytes(elf(code))
    return path


def memfd(code: bytes) -> int:
    """Returns a descriptor of such a file, which is the caller's to close."""
    fd = os.memfd_create("tiny-kernel")
    os.write(fd, elf(code))
    return fd
