//! The two sides of the model: a folder that is worked on through the host half, and one that is worked on
//! directly, by the same system calls as anybody would.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::super::Passthrough;
use super::fixture::*;
use crate::fs::backend::{Caller, Entry, HostFs, NodeId, ROOT_NODE};

/// splitmix64
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A place in the tree: the root, or a directory in it, and a name.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) parent: Option<CString>,
    pub(super) name: CString,
}

impl Spot {
    pub(super) fn random(random: &mut Random) -> Self {
        let parent = random.pick(&[None, None, Some("d0"), Some("d1"), Some("d2")]).map(c);
        let name = random.pick(&["d0", "d1", "d2", "a", "b", "c", "d", "e"]);
        Self { parent, name: c(name) }
    }

    pub(super) fn path(&self) -> CString {
        match &self.parent {
            None => self.name.clone(),
            Some(parent) => c(format!("{}/{}", parent.to_str().unwrap(), self.name.to_str().unwrap())),
        }
    }
}

/// The attributes that must be the same; a directory's size is the file system's affair.
pub(super) fn shown(mode: u32, uid: u32, gid: u32, nlink: u64, size: u64, rdev: u64) -> String {
    let size = if mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { size };
    format!("{mode:o} {uid} {gid} {nlink} {size} {rdev:x}")
}

/// The folder that is worked on directly.
pub(super) struct Direct(pub(super) OwnedFd);

pub(super) type Outcome = Result<String, i32>;

pub(super) fn done(outcome: i64) -> Outcome {
    if outcome < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(String::new()) }
}

impl Direct {
    pub(super) fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub(super) fn stat(&self, spot: &Spot) -> Result<libc::stat, i32> {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: a C string and a stat to be filled; zeroed before.
        unsafe {
            let path = spot.path();
            let flags = libc::AT_SYMLINK_NOFOLLOW;
            done(libc::fstatat(self.fd(), path.as_ptr(), stat.as_mut_ptr(), flags).into())?;
            Ok(stat.assume_init())
        }
    }

    pub(super) fn show(&self, spot: &Spot) -> Outcome {
        let stat = self.stat(spot)?;
        let size = u64::try_from(stat.st_size).unwrap();
        Ok(shown(stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, size, stat.st_rdev))
    }

    pub(super) fn open(&self, spot: &Spot, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
        // SAFETY: a C string; the descriptor that openat returns is nobody else's.
        unsafe {
            let path = spot.path();
            let fd = libc::openat(self.fd(), path.as_ptr(), flags | libc::O_NOFOLLOW | libc::O_CLOEXEC, mode);
            done(fd.into())?;
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }

    /// For calls that know no directory descriptors.
    pub(super) fn absolute(&self, spot: &Spot) -> CString {
        c(format!("/proc/self/fd/{}/{}", self.fd(), spot.path().to_str().unwrap()))
    }
}

/// Runs `act` as the caller, by the same system calls as anybody would.
pub(super) fn acting<T>(caller: &Caller, act: impl FnOnce() -> T) -> T {
    // SAFETY: plain integers; they concern this thread, which is the test's own.
    unsafe {
        libc::syscall(libc::SYS_setresgid, -1, caller.gid, -1);
        libc::syscall(libc::SYS_setresuid, -1, caller.uid, -1);
        let outcome = act();
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_setresuid, -1, 0, -1);
        libc::syscall(libc::SYS_setresgid, -1, 0, -1);
        *libc::__errno_location() = errno;
        outcome
    }
}

/// The folder that is worked on through the host half.
pub(super) struct Through<'a>(pub(super) &'a Passthrough);

impl Through<'_> {
    pub(super) fn parent(&self, spot: &Spot) -> io::Result<NodeId> {
        match &spot.parent {
            None => Ok(ROOT_NODE),
            Some(parent) => Ok(self.0.lookup(&root(), ROOT_NODE, parent)?.node),
        }
    }

    pub(super) fn node(&self, spot: &Spot) -> io::Result<NodeId> {
        Ok(self.0.lookup(&root(), self.parent(spot)?, &spot.name)?.node)
    }

    pub(super) fn show(&self, entry: &Entry) -> String {
        let now = self.0.attributes(entry.node, None).unwrap().0;
        let given = &entry.attributes;
        assert_eq!((now.ino, now.mode, now.size), (given.ino, given.mode, given.size));
        let rdev = libc::makedev(now.rdev.major, now.rdev.minor);
        shown(now.mode, now.uid, now.gid, now.nlink.into(), now.size, rdev)
    }
}
