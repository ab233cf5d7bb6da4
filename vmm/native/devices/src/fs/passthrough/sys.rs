//! System calls of the host half, one function each: no policy, no state.
//!
//! What libc wraps with process-wide effect (setresuid and its kin) or does not wrap at all (openat2) goes
//! through syscall(2).

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::fs::backend::{Attributes, DeviceNumber};

/// Resolution stays below the directory, follows no symlink and no magic link; mounts are crossed
/// (linux/openat2.h).
const CONFINED: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;

/// Basic fields, birth time and mount id (linux/stat.h: STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID).
const STATX_MASK: c_uint = 0x7ff | 0x800 | 0x1000;
const STATX_BTIME: u32 = 0x800;

/// An errno as an error.
pub(super) fn errno(number: c_int) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// "-1 and errno" as a result.
pub(super) fn check(outcome: c_int) -> io::Result<c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

pub(super) fn check_long(outcome: c_long) -> io::Result<usize> {
    usize::try_from(outcome).map_err(|_| io::Error::last_os_error())
}

/// Takes over a descriptor that a system call has just returned.
fn owned(outcome: c_long) -> io::Result<OwnedFd> {
    let raw = check_long(outcome)?;
    let raw = RawFd::try_from(raw).map_err(|_| errno(libc::EMFILE))?;
    // SAFETY: the system call has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Opens one name of a directory without ever leaving it.
pub(super) fn open_beneath(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: c_int,
    mode: u32,
) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: open_how is plain integers, for which zero is valid; it is non-exhaustive, hence no literal.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from(flags.cast_unsigned());
    how.mode = u64::from(mode);
    how.resolve = CONFINED;
    // EAGAIN: a rename or mount elsewhere made the kernel unsure; the next try settles it.
    for _ in 0..4 {
        // SAFETY: `name` is a C string and `how` a live open_how of the size that is passed.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                directory.as_raw_fd(),
                name.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match owned(outcome) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    Err(errno(libc::EAGAIN))
}

/// openat(2). Only for names that need no confinement: `.`, and numbers in /proc/self/fd.
pub(super) fn open_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: c_int,
    mode: u32,
) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string.
    owned(unsafe {
        libc::syscall(libc::SYS_openat, directory.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode)
    })
}

/// What statx(2) tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub attributes: Attributes,
    pub mount: u64,
}

/// struct statx_timestamp
#[repr(C)]
#[derive(Clone, Copy)]
struct Timestamp {
    sec: i64,
    nsec: u32,
    reserved: i32,
}

/// struct statx of linux/stat.h; libc's has not all fields on all of its targets.
#[repr(C)]
#[derive(Clone, Copy)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare0: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: Timestamp,
    btime: Timestamp,
    ctime: Timestamp,
    mtime: Timestamp,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    mnt_id: u64,
    spare: [u64; 13],
}

const _: () = assert!(size_of::<Statx>() == 256);

/// Attributes of an open file (an O_PATH descriptor will do).
pub(super) fn stat(file: BorrowedFd<'_>) -> io::Result<Stat> {
    statx(file, c"", libc::AT_EMPTY_PATH)
}

/// Attributes of one name of a directory; a symlink's are its own, and no automount is triggered.
pub(super) fn stat_name(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
    statx(directory, name, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT)
}

fn statx(directory: BorrowedFd<'_>, name: &CStr, flags: c_int) -> io::Result<Stat> {
    let mut raw = std::mem::MaybeUninit::<Statx>::zeroed();
    // SAFETY: `name` is a C string; `raw` is writable and as large as struct statx.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_statx,
            directory.as_raw_fd(),
            name.as_ptr(),
            flags,
            STATX_MASK,
            raw.as_mut_ptr(),
        )
    })?;
    // SAFETY: plain integers, zeroed before and filled by statx.
    let raw = unsafe { raw.assume_init() };
    let time = |time: Timestamp| (time.sec, time.nsec);
    Ok(Stat {
        attributes: Attributes {
            ino: raw.ino,
            size: raw.size,
            blocks: raw.blocks,
            mode: u32::from(raw.mode),
            nlink: raw.nlink,
            uid: raw.uid,
            gid: raw.gid,
            rdev: DeviceNumber { major: raw.rdev_major, minor: raw.rdev_minor },
            blksize: raw.blksize,
            atime: time(raw.atime),
            mtime: time(raw.mtime),
            ctime: time(raw.ctime),
            btime: (raw.mask & STATX_BTIME != 0).then(|| time(raw.btime)),
            statx_attributes: (raw.attributes, raw.attributes_mask),
            dev: DeviceNumber { major: raw.dev_major, minor: raw.dev_minor },
            mask: raw.mask,
            mapped: false,
        },
        mount: raw.mnt_id,
    })
}

/// A descriptor's name in /proc/self/fd, without allocation.
#[derive(Clone, Copy)]
pub(super) struct ProcName([u8; 12]);

impl ProcName {
    pub(super) fn new(file: impl AsFd) -> Self {
        let mut bytes = [0; 12];
        let mut rest = file.as_fd().as_raw_fd().cast_unsigned();
        let mut unused = 11;
        for place in bytes.iter_mut().rev().skip(1) {
            *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            unused -= 1;
            if rest == 0 {
                break;
            }
        }
        bytes.rotate_left(unused);
        Self(bytes)
    }

    pub(super) fn name(&self) -> &CStr {
        // The last byte is never a digit, so that there is always a NUL.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// getdents64(2) into `buffer`; 0 at the end of the directory.
pub(super) fn read_directory(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer` is writable for the length that is passed.
    check_long(unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    })
}

/// lseek(2) from the start, or to the next data or hole.
pub(super) fn seek(file: BorrowedFd<'_>, offset: u64, whence: c_int) -> io::Result<u64> {
    // SAFETY: plain integers; what is a negative offset to the kernel it refuses.
    let outcome = unsafe { libc::lseek(file.as_raw_fd(), offset.cast_signed(), whence) };
    u64::try_from(outcome).map_err(|_| io::Error::last_os_error())
}

/// The type of the file system that a descriptor is on (linux/magic.h).
pub(super) fn file_system_type(file: BorrowedFd<'_>) -> io::Result<i64> {
    Ok(file_system(file)?.f_type)
}

/// fstatfs(2)
pub(super) fn file_system(file: BorrowedFd<'_>) -> io::Result<libc::statfs> {
    let mut facts = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `facts` is writable and as large as fstatfs expects.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), facts.as_mut_ptr()) })?;
    // SAFETY: plain integers, zeroed before and filled by fstatfs.
    Ok(unsafe { facts.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_name_is_the_decimal_number_at_every_length() {
        for number in [0, 7, 10, 99, 100, 4095, 1_048_575, i32::MAX] {
            // SAFETY: the number is only formatted, never used as a descriptor.
            let file = unsafe { BorrowedFd::borrow_raw(number) };
            assert_eq!(ProcName::new(file).name().to_str().unwrap(), number.to_string());
        }
    }
}
