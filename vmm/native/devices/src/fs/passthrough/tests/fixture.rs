//! Folders of this test's own, and a [`Passthrough`] on them.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::{CachePolicy, Limits, Passthrough, PassthroughConfig, Root, ShareConfig};
use crate::fs::backend::{Caller, Creation, Entry, HandleId, HostFs, NodeId, ROOT_NODE, SessionOptions};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A folder that goes with its owner.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("strato-fs-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What this thread mounted there, in its own namespace.
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for target in below.filter(|target| Path::new(target).starts_with(&self.0)).collect::<Vec<_>>() {
            // SAFETY: a C string.
            unsafe { libc::umount2(c(target).as_ptr(), libc::MNT_DETACH) };
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

pub(crate) fn open_directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

pub(crate) fn share(path: &Path) -> ShareConfig {
    ShareConfig::new(open_directory(path))
}

pub(crate) const LIMITS: Limits = Limits { nodes: 4000, handles: 1000 };

pub(crate) fn passthrough(root: Root) -> Passthrough {
    let config = PassthroughConfig { root, limits: LIMITS, remote_locks: false, confine_threads: false };
    let made = Passthrough::new(config).unwrap();
    made.begin(SessionOptions { submounts: true, posix_acl: true, ..SessionOptions::default() });
    made
}

pub(crate) fn serve(path: &Path) -> Passthrough {
    passthrough(Root::Directory(share(path)))
}

pub(crate) fn serve_with(path: &Path, change: impl FnOnce(&mut ShareConfig)) -> Passthrough {
    let mut config = share(path);
    change(&mut config);
    passthrough(Root::Directory(config))
}

pub(crate) fn serve_cached(path: &Path, cache: CachePolicy) -> Passthrough {
    serve_with(path, |share| share.cache = cache)
}

pub(crate) fn root() -> Caller {
    Caller::default()
}

pub(crate) fn user(uid: u32, gid: u32) -> Caller {
    Caller { uid, gid, ..Caller::default() }
}

pub(crate) fn new(mode: u32) -> Creation {
    Creation { mode, umask: 0, rdev: 0 }
}

pub(crate) fn c(name: impl AsRef<std::ffi::OsStr>) -> CString {
    CString::new(name.as_ref().as_bytes()).unwrap()
}

/// The errno of a result; 0 for success.
pub(crate) fn code<T>(result: &io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

impl Passthrough {
    /// Looks a path up, component by component.
    pub(crate) fn walk(&self, path: &str) -> io::Result<Entry> {
        let mut node = ROOT_NODE;
        let mut found = None;
        for name in path.split('/') {
            let entry = self.lookup(&root(), node, &c(name))?;
            node = entry.node;
            found = Some(entry);
        }
        Ok(found.unwrap())
    }

    pub(crate) fn open_node(&self, node: NodeId, flags: i32) -> io::Result<HandleId> {
        self.open(&root(), node, flags.cast_unsigned(), false).map(|opened| opened.handle)
    }

    pub(crate) fn read_at(&self, handle: HandleId, offset: i64, len: usize) -> io::Result<Vec<u8>> {
        let file = self.file(handle)?;
        let mut data = vec![0; len];
        // SAFETY: `data` is writable for the length that is passed.
        let count =
            unsafe { libc::pread(file.as_fd().as_raw_fd(), data.as_mut_ptr().cast(), data.len(), offset) };
        data.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
        Ok(data)
    }

    pub(crate) fn write_at(&self, handle: HandleId, offset: i64, data: &[u8]) -> io::Result<usize> {
        let file = self.file(handle)?;
        // SAFETY: `data` is readable for the length that is passed.
        let count =
            unsafe { libc::pwrite(file.as_fd().as_raw_fd(), data.as_ptr().cast(), data.len(), offset) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    pub(crate) fn read_node(&self, node: NodeId) -> io::Result<Vec<u8>> {
        let handle = self.open_node(node, libc::O_RDONLY)?;
        let data = self.read_at(handle, 0, 65536);
        self.release(handle)?;
        data
    }

    pub(crate) fn make_file(&self, parent: NodeId, name: &CStr, data: &[u8]) -> io::Result<Entry> {
        let flags = (libc::O_RDWR | libc::O_CREAT).cast_unsigned();
        let (entry, opened) = self.create(&root(), parent, name, flags, new(0o644))?;
        self.write_at(opened.handle, 0, data)?;
        self.release(opened.handle)?;
        Ok(entry)
    }

    /// All names of a directory with their next offsets, in the host's order.
    pub(crate) fn list(&self, node: NodeId) -> io::Result<Vec<(String, u64)>> {
        let opened = self.opendir(&root(), node, 0)?;
        let mut names = Vec::new();
        self.readdir(opened.handle, 0, &mut |entry| {
            names.push((entry.name.to_str().unwrap().to_owned(), entry.next_offset));
            true
        })?;
        self.releasedir(opened.handle)?;
        Ok(names)
    }

    pub(crate) fn names(&self, node: NodeId) -> Vec<String> {
        let mut names: Vec<_> = self.list(node).unwrap().into_iter().map(|(name, _)| name).collect();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }

    pub(crate) fn levels(&self) -> (u64, u64) {
        let metrics = self.metrics();
        (metrics.nodes.load(Ordering::Relaxed), metrics.handles.load(Ordering::Relaxed))
    }
}

/// A mount namespace of the calling thread's own; threads that it starts are in it, too.
pub(crate) fn private_mounts() {
    // SAFETY: plain integers and C strings; it concerns the calling thread only.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "{}", io::Error::last_os_error());
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        let done = libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null());
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }
}

fn mount(source: &CStr, target: &Path, kind: &CStr, flags: libc::c_ulong) {
    let target = c(target);
    // SAFETY: all are C strings; there is no data.
    let done =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    assert_eq!(done, 0, "mount on {target:?}: {}", io::Error::last_os_error());
}

/// Mounts a fresh tmpfs on an existing directory of the calling thread's namespace.
pub(crate) fn mount_tmpfs(target: &Path) {
    mount(c"none", target, c"tmpfs", 0);
}

pub(crate) fn mount_proc(target: &Path) {
    mount(c"none", target, c"proc", 0);
}

/// Mounts `lower` under `upper` on `target`; false where the host has no overlayfs.
pub(crate) fn mount_overlay(target: &Path, lower: &Path, upper: &Path, work: &Path) -> bool {
    let options =
        c(format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display()));
    let target = c(target);
    // SAFETY: all are C strings.
    let done = unsafe {
        let kind = c"overlay".as_ptr();
        libc::mount(kind, target.as_ptr(), kind, 0, options.as_ptr().cast())
    };
    if done != 0 {
        eprintln!("skipped: no overlay: {}", io::Error::last_os_error());
    }
    done == 0
}

pub(crate) fn bind(source: &Path, target: &Path) {
    mount(&c(source), target, c"none", libc::MS_BIND);
}

/// A plain umount; the errno, or 0.
pub(crate) fn unmount(target: &Path) -> i32 {
    let target = c(target);
    // SAFETY: a C string.
    let done = unsafe { libc::umount2(target.as_ptr(), 0) };
    if done == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap() }
}

/// How many descriptors of this process lead to `path` or below.
pub(crate) fn descriptors_below(path: &Path) -> usize {
    let targets = fs::read_dir("/proc/self/fd").unwrap();
    targets
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(path))
        .count()
}

/// Unmounts what nothing of ours may hold. Other tests hold it busy for an instant: one that looks where our
/// descriptors lead, and a child that has copies of them until it has become its program.
pub(crate) fn unmount_released(path: &Path, context: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        match unmount(path) {
            0 => return,
            libc::EBUSY if Instant::now() < deadline => thread::yield_now(),
            error => panic!("{context}: errno {error}"),
        }
    }
}

/// Next to the share lies what the guest must never see or change.
pub(crate) struct Outside {
    pub(crate) scratch: Scratch,
    pub(crate) share: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) marker: PathBuf,
    before: String,
}

pub(crate) const SECRET: &[u8] = b"secret";

impl Outside {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        let share = scratch.make("share");
        let folder = scratch.make("outside");
        let marker = folder.join("marker");
        fs::write(&marker, SECRET).unwrap();
        let mut made = Self { scratch, share, folder, marker, before: String::new() };
        made.before = made.state();
        made
    }

    fn state(&self) -> String {
        use std::os::unix::fs::MetadataExt;
        let mut names: Vec<_> =
            fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let marker = fs::metadata(&self.marker).unwrap();
        let directory = fs::metadata(&self.folder).unwrap();
        format!(
            "{names:?} {:?} {:?} {:?} {:?}",
            fs::read(&self.marker).unwrap(),
            (marker.mode(), marker.uid(), marker.gid(), marker.nlink()),
            (marker.mtime(), marker.mtime_nsec(), marker.ctime(), marker.ctime_nsec()),
            (directory.mode(), directory.mtime(), directory.mtime_nsec(), directory.ctime_nsec()),
        )
    }

    /// The marker, and the folder that it is in, are as they were.
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.state(), self.before);
    }
}
