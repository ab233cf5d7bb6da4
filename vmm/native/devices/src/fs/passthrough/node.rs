//! The files that the guest knows of: node id -> O_PATH descriptor.
//!
//! A file is told from others by share, mount, device and inode number. The descriptor pins the inode, so
//! that its number cannot be given to another file while the node lives; birth times or file handles would
//! add nothing (on overlayfs they would even do harm: both change when a file is copied up). Ids are never
//! used twice, whence the generation is always 0.
//!
//! The lookup count falls only under the write lock, and rises under either: a node that is found in the
//! table while a lock is held cannot be at the point of being forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::metrics::PassthroughMetrics;
use super::share::{Live, Share};
use super::sys::{Stat, errno};
use crate::fs::backend::{NodeId, ROOT_NODE};

/// What tells one file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    share: u64,
    mount: u64,
    device: u64,
    ino: u64,
}

impl Identity {
    pub(super) fn new(share: &Share, stat: &Stat) -> Self {
        let dev = stat.attributes.dev;
        let device = u64::from(dev.major) << 32 | u64::from(dev.minor);
        Self { share: share.serial, mount: stat.mount, device, ino: stat.attributes.ino }
    }
}

/// What a file system is like; the same for all files of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// Close can fail (network file systems), so that the guest must be told to FLUSH.
    pub flush_matters: bool,
    /// Directories may be mounted at when they are entered.
    pub autofs: bool,
    /// A shared mapping shows the file as it is.
    pub mappable: bool,
}

/// A file that the guest knows of.
#[derive(Debug)]
pub(super) struct Node {
    file: OwnedFd,
    pub id: NodeId,
    identity: Identity,
    /// S_IFMT bits.
    pub kind: u32,
    pub traits: Traits,
    lookups: AtomicU64,
    /// Last: the descriptor is closed before the share hears of it.
    pub share: Live,
}

impl Node {
    pub(super) fn mount(&self) -> u64 {
        self.identity.mount
    }

    pub(super) fn ino(&self) -> u64 {
        self.identity.ino
    }

    pub(super) fn is_share_root(&self) -> bool {
        self.id == self.share.root
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A file that may become a node.
pub(super) struct Candidate<'a> {
    pub file: OwnedFd,
    pub share: &'a Arc<Share>,
    pub stat: &'a Stat,
    pub traits: Traits,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<NodeId, Arc<Node>, Scatter>,
    by_identity: HashMap<Identity, Arc<Node>, Scatter>,
}

impl Table {
    fn remove(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let node = self.by_id.remove(&id)?;
        self.by_identity.remove(&node.identity);
        Some(node)
    }
}

/// All nodes of one guest.
#[derive(Debug)]
pub(super) struct Nodes {
    limit: usize,
    next: AtomicU64,
    table: RwLock<Table>,
    metrics: Arc<PassthroughMetrics>,
}

impl Nodes {
    pub(super) fn new(limit: usize, metrics: Arc<PassthroughMetrics>) -> Self {
        Self { limit, next: AtomicU64::new(ROOT_NODE + 1), table: RwLock::default(), metrics }
    }

    /// Every node with a smaller id is in the table already (or gone from it).
    pub(super) fn next_id(&self) -> NodeId {
        self.next.load(Ordering::SeqCst)
    }

    pub(super) fn reserve_id(&self) -> NodeId {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.read().by_id.get(&id).cloned()
    }

    /// Counts one lookup of the node with this identity, if there is one older than `before`.
    pub(super) fn find(&self, identity: &Identity, before: NodeId) -> Option<NodeId> {
        let table = self.read();
        let node = table.by_identity.get(identity).filter(|node| node.id < before)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Some(node.id)
    }

    /// Counts one lookup of a node that is still known.
    pub(super) fn again(&self, id: NodeId) -> io::Result<()> {
        let table = self.read();
        let node = table.by_id.get(&id).ok_or_else(|| errno(libc::ESTALE))?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a node, or counts one lookup more of the one that is there.
    pub(super) fn insert(&self, candidate: Candidate<'_>) -> io::Result<NodeId> {
        let Candidate { file, share, stat, traits } = candidate;
        let identity = Identity::new(share, stat);
        let mut table = self.write();
        if let Some(node) = table.by_identity.get(&identity) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            let id = node.id;
            drop(table);
            return Ok(id);
        }
        if share.is_closed() {
            return Err(errno(libc::ESTALE));
        }
        if table.by_id.len() >= self.limit {
            PassthroughMetrics::count(&self.metrics.nodes_refused);
            return Err(errno(libc::ENFILE));
        }
        let id = self.reserve_id();
        let kind = stat.attributes.mode & libc::S_IFMT;
        self.put(
            &mut table,
            Node { file, id, identity, kind, traits, lookups: AtomicU64::new(1), share: Live::new(share) },
        );
        Ok(id)
    }

    /// Makes the node of a share's own folder, which is never forgotten.
    pub(super) fn insert_root(&self, candidate: Candidate<'_>) {
        let Candidate { file, share, stat, traits } = candidate;
        let node = Node {
            file,
            id: share.root,
            identity: Identity::new(share, stat),
            kind: stat.attributes.mode & libc::S_IFMT,
            traits,
            lookups: AtomicU64::new(0),
            share: Live::new(share),
        };
        self.put(&mut self.write(), node);
    }

    fn put(&self, table: &mut Table, node: Node) {
        let node = Arc::new(node);
        table.by_identity.insert(node.identity, Arc::clone(&node));
        table.by_id.insert(node.id, node);
        PassthroughMetrics::level(&self.metrics.nodes, table.by_id.len());
    }

    /// Takes `count` lookups back, and drops the node with the last. False if the guest held fewer.
    pub(super) fn forget(&self, id: NodeId, count: u64) -> bool {
        let mut table = self.write();
        let Some(node) = table.by_id.get(&id) else { return false };
        let held = node.lookups.load(Ordering::Relaxed);
        node.lookups.store(held.saturating_sub(count), Ordering::Relaxed);
        let gone = if held <= count && !node.is_share_root() { table.remove(id) } else { None };
        PassthroughMetrics::level(&self.metrics.nodes, table.by_id.len());
        // Closing can take its time (the last link of a large file): not under the lock.
        drop(table);
        drop(gone);
        count <= held
    }

    /// Drops all nodes but the shares' own folders.
    pub(super) fn clear(&self) {
        self.take(|node| {
            node.lookups.store(0, Ordering::Relaxed);
            !node.is_share_root()
        });
    }

    /// Drops all nodes of a share.
    pub(super) fn revoke(&self, share: &Share) {
        self.take(|node| node.identity.share == share.serial);
    }

    fn take(&self, mut which: impl FnMut(&Node) -> bool) {
        let mut table = self.write();
        let ids: Vec<NodeId> =
            table.by_id.iter().filter(|(_, node)| which(node)).map(|(id, _)| *id).collect();
        let gone: Vec<_> = ids.into_iter().filter_map(|id| table.remove(id)).collect();
        PassthroughMetrics::level(&self.metrics.nodes, table.by_id.len());
        drop(table);
        drop(gone);
    }

    /// One node for each mount that the guest knows of.
    pub(super) fn one_per_mount(&self) -> Vec<Arc<Node>> {
        let table = self.read();
        let mut mounts = HashMap::new();
        for node in table.by_id.values().filter(|node| matches!(node.kind, libc::S_IFDIR | libc::S_IFREG)) {
            mounts.entry(node.mount()).or_insert_with(|| Arc::clone(node));
        }
        mounts.into_values().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cheap hash of a few integers, with a seed of its own: the keys are inode numbers and our own counters.
#[derive(Clone, Debug)]
pub(super) struct Scatter(u64);

impl Default for Scatter {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Scatter {
    type Hasher = ScatterHasher;

    fn build_hasher(&self) -> ScatterHasher {
        ScatterHasher(self.0)
    }
}

pub(super) struct ScatterHasher(u64);

impl Hasher for ScatterHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    /// Multiplies and folds: every bit of the number reaches high and low bits of the hash.
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        #[allow(clippy::cast_possible_truncation)] // the fold
        let folded = (product as u64) ^ ((product >> 64) as u64);
        self.0 = folded;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
