//! What a [`super::Passthrough`] is made from.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use super::super::backend::CachePolicy;
use super::sys::check;

/// What the guest sees as its root directory.
#[derive(Debug)]
pub enum Root {
    /// One share.
    Directory(ShareConfig),
    /// A read-only directory whose entries are shares, added and removed at run time.
    Collection,
}

/// One folder of the host.
#[derive(Debug)]
pub struct ShareConfig {
    /// The folder, opened in any way (O_PATH will do).
    pub directory: OwnedFd,
    /// What the guest may cache.
    pub cache: CachePolicy,
    /// Everything that writes is EROFS.
    pub readonly: bool,
    /// O_DIRECT of the guest reaches the host's file; otherwise it only bypasses the guest's cache.
    pub direct_io: bool,
}

impl ShareConfig {
    /// A writable share of `directory` with the default cache policy.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory, cache: CachePolicy::default(), readonly: false, direct_io: true }
    }
}

impl CachePolicy {
    /// How long names and attributes are good.
    pub fn timeout(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Always => Duration::from_secs(86400),
        }
    }

    /// How long it is good that a name is missing. Never longer than a second: a file that the host puts
    /// into a folder must appear, even where files that are there are known to stay as they are.
    pub fn absence_timeout(self) -> Duration {
        self.timeout().min(Duration::from_secs(1))
    }
}

/// Beyond a million files the host's memory for them is the worse limit: each takes about a KiB of the kernel's.
const MAX_DESCRIPTORS: usize = 1 << 20;

/// Descriptors for everything in the process that is not the guest's files.
const OF_OTHERS: usize = 512;

/// How many descriptors a guest may make the host hold. Beyond it the guest gets ENFILE for files that it
/// looks up, EMFILE for files that it opens; what it holds goes on working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files that the guest knows of (one descriptor each).
    pub nodes: usize,
    /// Open files and directories (one descriptor each).
    pub handles: usize,
}

impl Limits {
    /// What the process may have (RLIMIT_NOFILE): an eighth for open files, the rest for known ones, but for
    /// what the others in the process need.
    ///
    /// # Errors
    /// The kernel does not tell the limit.
    pub fn from_process() -> io::Result<Self> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is a live rlimit.
        check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
        let all = usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX).min(MAX_DESCRIPTORS);
        let ours = all - OF_OTHERS.min(all / 4);
        Ok(Self { nodes: ours / 8 * 7, handles: ours / 8 })
    }
}

/// Everything that a [`super::Passthrough`] is made from.
#[derive(Debug)]
pub struct PassthroughConfig {
    /// What the guest sees.
    pub root: Root,
    /// Descriptor budget.
    pub limits: Limits,
    /// Locks are taken on the host's files; if not, they are the guest's own.
    pub remote_locks: bool,
    /// A thread that is prepared, or serves a request unprepared, keeps only the capabilities that the host
    /// half needs.
    pub confine_threads: bool,
}

impl PassthroughConfig {
    /// `root` with guest-local locks, the default budget and confined threads.
    ///
    /// # Errors
    /// As [`Limits::from_process`].
    pub fn new(root: Root) -> io::Result<Self> {
        Ok(Self { root, limits: Limits::from_process()?, remote_locks: false, confine_threads: true })
    }
}
