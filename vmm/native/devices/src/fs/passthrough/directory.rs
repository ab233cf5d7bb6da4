//! Listing directories. Offsets are the host file system's own (d_off), so that a listing can go on from any
//! entry, in any order, with several readers of one handle.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use super::handle::{COLLECTION_HANDLE, Handle};
use super::sys::{self, errno};
use super::{CachePolicy, Passthrough};
use crate::fs::backend::{DirectoryEntry, HandleId, NodeId, Opened};

/// What one getdents64 may fill.
const BUFFER_LEN: usize = 32 * 1024;

/// How many listings may keep a buffer between requests: 2 MiB in all. The others read less at a time, and
/// again what the guest did not take.
const MAX_BUFFERS: usize = 64;
const SMALL_LEN: usize = 4096;

/// Offset of the name in struct linux_dirent64: d_ino, d_off, d_reclen, d_type.
const NAME_OFFSET: usize = 19;

/// Where a listing stands.
#[derive(Debug, Default)]
pub(super) struct Stream {
    buffer: Option<Buffer>,
    position: usize,
    end: usize,
    /// The offset of what follows at `position`. At first the beginning, like the descriptor's.
    next: u64,
    /// The descriptor stands elsewhere.
    astray: bool,
}

#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    /// `None`: beyond the budget, for one request only.
    budget: Option<Arc<AtomicUsize>>,
}

impl Buffer {
    fn new(budget: &Arc<AtomicUsize>) -> Self {
        if budget.fetch_add(1, Ordering::Relaxed) < MAX_BUFFERS {
            return Self { bytes: vec![0; BUFFER_LEN], budget: Some(Arc::clone(budget)) };
        }
        budget.fetch_sub(1, Ordering::Relaxed);
        Self { bytes: vec![0; SMALL_LEN], budget: None }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

pub(super) fn opendir(fs: &Passthrough, node: NodeId, flags: u32) -> io::Result<Opened> {
    let mut opened = Opened {
        handle: COLLECTION_HANDLE,
        keep_cache: false,
        direct_io: false,
        cache_dir: false,
        no_flush: false,
    };
    if fs.is_collection(node) {
        return Ok(opened);
    }
    let node = fs.node(node)?;
    if node.kind != libc::S_IFDIR {
        return Err(errno(libc::ENOTDIR));
    }
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | flags.cast_signed() & libc::O_NOATIME;
    let file = sys::open_at(node.as_fd(), c".", flags, 0)?;
    opened.handle = fs.handles.insert(Handle::directory(&node, file))?;
    opened.cache_dir = node.share.cache == CachePolicy::Always;
    opened.keep_cache = opened.cache_dir;
    Ok(opened)
}

pub(super) fn readdir(
    fs: &Passthrough,
    handle: HandleId,
    offset: u64,
    sink: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
) -> io::Result<()> {
    if let Some(collection) = fs.collection.as_ref().filter(|_| handle == COLLECTION_HANDLE) {
        fs.prepare()?;
        collection.list(offset, sink);
        return Ok(());
    }
    let handle = fs.handle(handle)?;
    let stream = handle.stream.as_ref().ok_or_else(|| errno(libc::ENOTDIR))?;
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = read_from(fs, &handle, &mut stream, offset, sink);
    stream.settle();
    outcome
}

fn read_from(
    fs: &Passthrough,
    handle: &Handle,
    stream: &mut Stream,
    offset: u64,
    sink: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
) -> io::Result<()> {
    if offset != stream.next || stream.astray {
        stream.clear();
        sys::seek(handle.as_fd(), offset, libc::SEEK_SET)?;
        stream.next = offset;
        stream.astray = false;
    }
    loop {
        let bytes = match &stream.buffer {
            Some(buffer) => buffer.bytes.get(stream.position..stream.end).unwrap_or_default(),
            None => &[],
        };
        if let Some((mut entry, len)) = parse(bytes) {
            if let (Some(ino), b"..") = (handle.root_ino, entry.name.to_bytes()) {
                entry.ino = ino;
            }
            let next = entry.next_offset;
            if !sink(entry) {
                return Ok(());
            }
            stream.position += len;
            stream.next = next;
            continue;
        }
        let buffer = stream.buffer.get_or_insert_with(|| Buffer::new(&fs.directory_buffers));
        (stream.position, stream.end) = (0, 0);
        stream.end = sys::read_directory(handle.as_fd(), &mut buffer.bytes)?;
        if stream.end == 0 {
            // Most listings end here and are closed next.
            stream.buffer = None;
            return Ok(());
        }
    }
}

impl Stream {
    fn clear(&mut self) {
        (self.position, self.end) = (0, 0);
        self.astray = true;
    }

    /// Gives back a buffer that is not to be kept.
    fn settle(&mut self) {
        if self.buffer.as_ref().is_some_and(|buffer| buffer.budget.is_none()) {
            self.buffer = None;
            self.astray = self.position != self.end;
            (self.position, self.end) = (0, 0);
        }
    }
}

/// The first entry of what getdents64 filled in, and its length.
fn parse(bytes: &[u8]) -> Option<(DirectoryEntry<'_>, usize)> {
    let (ino, rest) = bytes.split_first_chunk::<8>()?;
    let (next_offset, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let kind = *rest.first()?;
    let len = usize::from(u16::from_ne_bytes(*len));
    let name = CStr::from_bytes_until_nul(bytes.get(NAME_OFFSET..len)?).ok()?;
    let entry = DirectoryEntry {
        ino: u64::from_ne_bytes(*ino),
        next_offset: u64::from_ne_bytes(*next_offset),
        kind,
        name,
    };
    Some((entry, len))
}

pub(super) fn fsyncdir(fs: &Passthrough, handle: HandleId, data_only: bool) -> io::Result<()> {
    if handle == COLLECTION_HANDLE && fs.collection.is_some() {
        return Ok(());
    }
    super::files::fsync(fs, handle, data_only)
}

pub(super) fn releasedir(fs: &Passthrough, handle: HandleId) -> io::Result<()> {
    if handle == COLLECTION_HANDLE && fs.collection.is_some() {
        return Ok(());
    }
    super::files::release(fs, handle)
}
