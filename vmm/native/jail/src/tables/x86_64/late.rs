//! Making a device while the VM runs, on the first thread.

use crate::rules::{Rule, is, is_long, permit};

// linux/fs.h
const BLKIOOPT: i32 = 0x1279;
const BLKSSZGET: i32 = 0x1268;
const BLKPBSZGET: i32 = 0x127b;

pub(in crate::tables) const RULES: [Rule; 18] = [
    permit!(SYS_eventfd2, "Doorbells, interrupts, being woken"),
    permit!(SYS_epoll_create1, "What a device waits for"),
    permit!(SYS_timerfd_create, "Limits"),
    permit!(SYS_timerfd_settime, "Limits"),
    permit!(SYS_prlimit64, [is(0, 0), is_long(2, 0)], "How many files a share may keep open; nothing is set"),
    permit!(SYS_dup, "Descriptors handed to devices"),
    permit!(SYS_fstatfs, "A disk's or a share's file system"),
    permit!(SYS_fadvise64, "How a disk's file is going to be read"),
    permit!(SYS_ioctl, [is(1, BLKSSZGET)], "A disk's sectors"),
    permit!(SYS_ioctl, [is(1, BLKPBSZGET)], "A disk's sectors"),
    permit!(SYS_ioctl, [is(1, BLKIOOPT)], "A disk's sectors"),
    permit!(SYS_io_uring_setup, "A disk's requests to the kernel"),
    permit!(SYS_io_uring_register, "Nothing but the disk's own requests will be taken"),
    permit!(SYS_io_uring_enter, "The end takes back what is under way"),
    permit!(SYS_ioctl, [is(1, libc::TUNGETIFF as i32)], "What kind of tap it is"),
    permit!(SYS_ioctl, [is(1, libc::TUNSETVNETHDRSZ as i32)], "The tap's packets have a header"),
    permit!(SYS_ioctl, [is(1, libc::TUNSETOFFLOAD as i32)], "What the guest's driver can take"),
    permit!(SYS_ioctl, [is(1, libc::TUNSETQUEUE as i32)], "A queue that the guest does not use"),
];
