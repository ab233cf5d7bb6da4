//! The host half of the fs device: folders of the host, passed through.
//!
//! What a guest can reach: the folder of each share and what is below it, mounts included. Names are single
//! components, opened beneath the descriptor of their directory (openat2), never by a path; symlinks are
//! resolved by the guest, in the guest. Only regular files and directories are opened for I/O: device nodes,
//! fifos and sockets that lie in a share mean the guest's own devices, fifos and sockets. A directory that
//! somebody on the host moves out of the share while the guest knows of it stays known to the guest, with
//! what is below it, until the guest forgets it; there is no way from it to its new parent (`..` is no name
//! that can be looked up).
//!
//! A request may come from any thread that is prepared ([`HostFs::prepare_thread`], see [`credentials`]).
//!
//! [`HostFs::prepare_thread`]: super::backend::HostFs::prepare_thread
#![expect(unsafe_code, reason = "system calls, here and in the modules below")]

mod attributes;
mod collection;
mod config;
pub mod credentials;
mod directory;
mod files;
mod handle;
mod host_fs;
mod locks;
mod lookup;
mod metrics;
mod names;
mod node;
mod share;
mod sys;
#[cfg(test)]
mod tests;
mod xattr;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use self::collection::Collection;
pub use self::config::{CachePolicy, Limits, PassthroughConfig, Root, ShareConfig};
use self::handle::{Handle, Handles};
use self::locks::Locks;
pub use self::metrics::PassthroughMetrics;
use self::node::{Node, Nodes};
use self::sys::errno;
use super::backend::{HandleId, NodeId, ROOT_NODE, Revocation, SessionOptions};

/// Folders of the host. Shared by the threads that serve a guest and the one that controls it.
#[derive(Debug)]
pub struct Passthrough {
    /// The directory /proc/self/fd, through which O_PATH descriptors are opened for I/O. Held from the
    /// start: /proc may be out of reach later.
    proc_self_fd: OwnedFd,
    nodes: Nodes,
    handles: Handles,
    locks: Locks,
    /// `None`: node 1 is the folder of the only share.
    collection: Option<Collection>,
    options: Options,
    remote_locks: bool,
    confine_threads: bool,
    metrics: Arc<PassthroughMetrics>,
    /// How many listings keep a buffer.
    directory_buffers: Arc<AtomicUsize>,
    revocations: Mutex<Vec<Weak<dyn Revocation>>>,
}

impl Passthrough {
    /// Opens what is to be passed through.
    ///
    /// # Errors
    /// /proc/self/fd or the folder of the share cannot be opened; the kernel has no openat2 (ENOSYS).
    pub fn new(config: PassthroughConfig) -> io::Result<Self> {
        let proc_self_fd = open_proc_self_fd()?;
        let metrics = Arc::<PassthroughMetrics>::default();
        let nodes = Nodes::new(config.limits.nodes, Arc::clone(&metrics));
        let handles = Handles::new(config.limits.handles, Arc::clone(&metrics));
        let mut made = Self {
            proc_self_fd,
            nodes,
            handles,
            locks: Locks::new(config.limits.handles),
            collection: None,
            options: Options::default(),
            remote_locks: config.remote_locks,
            confine_threads: config.confine_threads,
            metrics,
            directory_buffers: Arc::default(),
            revocations: Mutex::default(),
        };
        match config.root {
            Root::Directory(share) => made.open_share(share, ROOT_NODE).map(drop)?,
            Root::Collection => made.collection = Some(Collection::default()),
        }
        Ok(made)
    }

    /// Adds a share to the collection; the guest finds it at once.
    ///
    /// # Errors
    /// EINVAL: the root is no collection, or `name` is not the name of an entry; EEXIST: there is such a
    /// share; otherwise the folder cannot be opened.
    pub fn add_share(&self, name: &CStr, config: ShareConfig) -> io::Result<()> {
        let collection = self.collection.as_ref().ok_or_else(|| errno(libc::EINVAL))?;
        lookup::check_name(name)?;
        // Opened first: a host file system that does not answer must not hold up those who look a name up.
        let share = self.open_share(config, self.nodes.reserve_id())?;
        collection.add(name, &share, &self.metrics).inspect_err(|_| {
            share.close();
            self.nodes.revoke(&share);
        })
    }

    /// Removes a share: the guest's nodes and handles below it end (ESTALE, EBADF), and once the requests
    /// in flight are done, no descriptor and no mapping below it is left, so that its folder can be unmounted.
    ///
    /// # Errors
    /// ENOENT: there is no such share; ETIMEDOUT: it is removed, but a request is still in flight.
    pub fn remove_share(&self, name: &CStr, timeout: Duration) -> io::Result<()> {
        let collection = self.collection.as_ref().ok_or_else(|| errno(libc::ENOENT))?;
        let share = collection.remove(name, &self.metrics)?;
        share.close();
        let revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        revocations.iter().filter_map(Weak::upgrade).for_each(|told| told.revoke(share.serial));
        drop(revocations);
        self.nodes.revoke(&share);
        self.handles.revoke(&share);
        self.locks.revoke(&share);
        share.wait_until_unused(timeout)
    }

    /// The counters.
    pub fn metrics(&self) -> Arc<PassthroughMetrics> {
        Arc::clone(&self.metrics)
    }

    fn proc_self_fd(&self) -> BorrowedFd<'_> {
        self.proc_self_fd.as_fd()
    }

    /// What every request begins with.
    fn prepare(&self) -> io::Result<()> {
        credentials::prepare_thread(self.proc_self_fd(), self.confine_threads)
    }

    /// The node, for an operation that does not write. The root of a collection is none.
    fn node(&self, id: NodeId) -> io::Result<Arc<Node>> {
        self.prepare()?;
        self.nodes
            .get(id)
            .ok_or_else(|| errno(if self.is_collection(id) { libc::EPERM } else { libc::ESTALE }))
    }

    /// The node, for an operation that writes.
    fn writable_node(&self, id: NodeId) -> io::Result<Arc<Node>> {
        if self.is_collection(id) {
            return Err(errno(libc::EROFS));
        }
        let node = self.node(id)?;
        if node.share.readonly { Err(errno(libc::EROFS)) } else { Ok(node) }
    }

    fn handle(&self, id: HandleId) -> io::Result<Arc<Handle>> {
        self.prepare()?;
        self.handles.get(id).ok_or_else(|| errno(libc::EBADF))
    }

    fn is_collection(&self, id: NodeId) -> bool {
        id == ROOT_NODE && self.collection.is_some()
    }
}

fn open_proc_self_fd() -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    // SAFETY: AT_FDCWD is not a descriptor that anybody could close.
    let nowhere = unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };
    sys::open_at(nowhere, c"/proc/self/fd", flags, 0)
}

/// [`SessionOptions`] that every request may read and a new session may set.
#[derive(Debug, Default)]
struct Options(AtomicU8);

impl Options {
    fn set(&self, options: SessionOptions) {
        let SessionOptions {
            writeback,
            kill_privileges,
            submounts,
            posix_acl,
            dont_mask,
            direct_io_mmap,
            mapped_files,
        } = options;
        let bits =
            [writeback, kill_privileges, submounts, posix_acl, dont_mask, direct_io_mmap, mapped_files]
                .into_iter()
                .rev()
                .fold(0, |bits, option| bits << 1 | u8::from(option));
        self.0.store(bits, Ordering::Relaxed);
    }

    fn get(&self) -> SessionOptions {
        let bits = self.0.load(Ordering::Relaxed);
        let option = |number: u8| bits >> number & 1 != 0;
        SessionOptions {
            writeback: option(0),
            kill_privileges: option(1),
            submounts: option(2),
            posix_acl: option(3),
            dont_mask: option(4),
            direct_io_mmap: option(5),
            mapped_files: option(6),
        }
    }
}
