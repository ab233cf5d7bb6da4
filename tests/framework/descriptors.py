"""Which descriptors this process has open, for tests that look for leaks."""

from pathlib import Path


def open_descriptors() -> set[int]:
    """The numbers of all open descriptors."""
    # The folder itself is open while it is read, by a number that is free again afterwards.
    return {
        number for entry in Path("/proc/self/fd").iterdir() if (number := int(entry.name)) and entry.exists()
    }
