"""`python -m tests.lab.served_folder SOURCE VIEW PROGRAM…`: runs a program in a mount namespace of its own,
where VIEW shows SOURCE with everything mounted below it, read-only all the way down.

For virtiofsd, which has no read-only mode in the release that we use. The view is gone with the program.
"""

import os
import sys

from vmm import sys as host

# <linux/mount.h>, <linux/sched.h>, <fcntl.h>
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MOUNT_ATTR_RDONLY = 0x1
CLONE_NEWNS = 0x20000
AT_RECURSIVE = 0x8000


def main() -> None:
    """Becomes the program. Raises OSError."""
    source, view, *program = sys.argv[1:]
    host.unshare(CLONE_NEWNS)
    host.mount("", "/", "", MS_REC | MS_PRIVATE, "")
    host.mount(source, view, "", MS_BIND | MS_REC, "")
    host.mount_setattr(view, AT_RECURSIVE, set_attributes=MOUNT_ATTR_RDONLY)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
