//! From a name to a node: the one way in which files become known to the guest.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::collection::NAME_TIMEOUT;
use super::node::{Candidate, Identity, Node, Traits};
use super::share::Share;
use super::sys::{self, Stat, errno};
use super::{Passthrough, ShareConfig};
use crate::fs::backend::{Entry, NodeId};

/// NAME_MAX of linux/limits.h
const NAME_MAX: usize = 255;

/// STATX_ATTR_AUTOMOUNT of linux/stat.h
const STATX_ATTR_AUTOMOUNT: u64 = 0x1000;

/// File systems whose close(2) writes back and can fail (linux/magic.h; the last two are in the sources of
/// cifs): NFS, FUSE, 9p, AFS, Ceph, CIFS, SMB2.
const FLUSHING: [i64; 7] =
    [0x6969, 0x6573_5546, 0x0102_1997, 0x5346_414f, 0x00c3_6400, 0xff53_4d42, 0xfe53_4d42];

/// File systems whose files may be mapped (linux/magic.h; XFS's is in its sources): ext2 to ext4, XFS, btrfs,
/// tmpfs, EROFS, squashfs. Not those over a network, where others change a file below its mappings, and not
/// overlayfs: what was mapped there before the file is written to for the first time goes on showing the lower
/// file, which may even be shorter.
const MAPPABLE: [i64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xe0f5_e1e2, 0x7371_7368];

/// AUTOFS_SUPER_MAGIC
const AUTOFS: i64 = 0x0187;

/// Shares are numbered over the life of the process.
static NEXT_SHARE: AtomicU64 = AtomicU64::new(1);

/// The FUSE half has checked it already; a mistake there must not open the host.
pub(super) fn check_name(name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    match bytes {
        b"" => Err(errno(libc::ENOENT)),
        b"." | b".." => Err(errno(libc::EINVAL)),
        _ if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ if bytes.len() > NAME_MAX => Err(errno(libc::ENAMETOOLONG)),
        _ => Ok(()),
    }
}

pub(super) fn lookup(fs: &Passthrough, parent: NodeId, name: &CStr) -> io::Result<Entry> {
    check_name(name)?;
    if let Some(collection) = fs.collection.as_ref().filter(|_| fs.is_collection(parent)) {
        fs.prepare()?;
        let share = collection.find(name).ok_or_else(|| errno(libc::ENOENT))?;
        return fs.share_entry(&share);
    }
    fs.lookup_below(&*fs.node(parent)?, name)
}

impl Passthrough {
    /// Opens the folder of a share and makes it node `root`.
    pub(super) fn open_share(&self, config: ShareConfig, root: NodeId) -> io::Result<Arc<Share>> {
        let ShareConfig { directory, cache, readonly, direct_io } = config;
        // A descriptor of our own: the caller's may be of any kind, with a position that others share.
        let file = sys::open_beneath(directory.as_fd(), c".", libc::O_PATH | libc::O_DIRECTORY, 0)?;
        drop(directory);
        let stat = sys::stat(file.as_fd())?;
        let traits = traits_of_mount(&file)?;
        let serial = NEXT_SHARE.fetch_add(1, Ordering::Relaxed);
        let share = Share::new(serial, root, cache, readonly, direct_io);
        self.nodes.insert_root(Candidate { file, share: &share, stat: &stat, traits });
        Ok(share)
    }

    fn share_entry(&self, share: &Arc<Share>) -> io::Result<Entry> {
        let node = self.node(share.root)?;
        let stat = sys::stat(node.as_fd())?;
        self.nodes.again(share.root)?;
        let mut entry = self.entry(share, share.root, &stat);
        entry.entry_timeout = entry.entry_timeout.min(NAME_TIMEOUT);
        entry.submount = self.options.get().submounts;
        Ok(entry)
    }

    pub(super) fn lookup_below(&self, parent: &Node, name: &CStr) -> io::Result<Entry> {
        let share = &*parent.share;
        if share.expects_known() {
            // Only a node that was there before the question pinned its inode while it was asked.
            let before = self.nodes.next_id();
            let stat = sys::stat_name(parent.as_fd(), name)?;
            if !may_be_mounted(parent, &stat)
                && let Some(id) = self.nodes.find(&Identity::new(share, &stat), before)
            {
                share.learn(true);
                return Ok(self.entry_below(parent, id, &stat));
            }
        }
        let mut file = sys::open_beneath(parent.as_fd(), name, libc::O_PATH, 0)?;
        let mut stat = sys::stat(file.as_fd())?;
        if may_be_mounted(parent, &stat) {
            // Entering makes the automounter act; it may take its time, or fail.
            file = sys::open_beneath(parent.as_fd(), name, libc::O_PATH | libc::O_DIRECTORY, 0)?;
            stat = sys::stat(file.as_fd())?;
        }
        self.admit(parent, file, &stat)
    }

    /// Makes an opened file known to the guest.
    pub(super) fn admit(&self, parent: &Node, file: OwnedFd, stat: &Stat) -> io::Result<Entry> {
        let share = &*parent.share;
        if let Some(id) = self.nodes.find(&Identity::new(share, stat), NodeId::MAX) {
            share.learn(true);
            return Ok(self.entry_below(parent, id, stat));
        }
        share.learn(false);
        let traits = if stat.mount == parent.mount() { parent.traits } else { traits_of_mount(&file)? };
        let id = self.nodes.insert(Candidate { file, share, stat, traits })?;
        Ok(self.entry_below(parent, id, stat))
    }

    pub(super) fn entry_below(&self, parent: &Node, id: NodeId, stat: &Stat) -> Entry {
        let mut entry = self.entry(&parent.share, id, stat);
        let directory = stat.attributes.mode & libc::S_IFMT == libc::S_IFDIR;
        let options = self.options.get();
        entry.submount = directory && stat.mount != parent.mount() && options.submounts;
        if options.mapped_files && stat.attributes.mode & libc::S_IFMT == libc::S_IFREG {
            let same = stat.mount == parent.mount();
            let traits = if same { Some(parent.traits) } else { self.nodes.get(id).map(|node| node.traits) };
            entry.attributes.mapped = traits.is_some_and(|traits| traits.mappable);
        }
        entry
    }

    fn entry(&self, share: &Share, id: NodeId, stat: &Stat) -> Entry {
        Entry {
            node: id,
            generation: 0,
            attributes: stat.attributes,
            entry_timeout: share.cache.timeout(),
            attributes_timeout: share.cache.timeout(),
            submount: false,
        }
    }
}

fn may_be_mounted(parent: &Node, stat: &Stat) -> bool {
    let directory = stat.attributes.mode & libc::S_IFMT == libc::S_IFDIR;
    let trigger = stat.attributes.statx_attributes.0 & STATX_ATTR_AUTOMOUNT != 0;
    directory && (trigger || (parent.traits.autofs && stat.mount == parent.mount()))
}

fn traits_of_mount(file: &OwnedFd) -> io::Result<Traits> {
    let kind = sys::file_system_type(file.as_fd())?;
    Ok(Traits {
        flush_matters: FLUSHING.contains(&kind),
        autofs: kind == AUTOFS,
        mappable: MAPPABLE.contains(&kind),
    })
}
