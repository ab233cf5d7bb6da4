//! Building answers: the header's place first, then fields in little-endian order.

use std::time::Duration;

use super::backend::{Attributes, DeviceNumber, Entry, FileSystemStatistics, Opened};
use super::wire::{DIRENT_LEN, ENTRY_OUT_LEN, OUT_HEADER_LEN, flag};

/// An answer under construction; its memory is used again for the next one.
#[derive(Debug)]
pub(super) struct Reply {
    bytes: Vec<u8>,
    /// Most bytes that the guest left room for, header included.
    room: usize,
    /// See [`super::server::ATTRIBUTES_GRACE`].
    grace: Duration,
}

/// new_encode_dev of linux/kdev_t.h
fn encode_device(number: DeviceNumber) -> u32 {
    (number.minor & 0xff) | (number.major << 8) | ((number.minor & !0xff) << 12)
}

impl Reply {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(4096), room: 0, grace: Duration::ZERO }
    }

    /// Begins an answer for which the guest left `room` bytes; attributes in it are good for `grace` at least.
    pub(super) fn begin(&mut self, room: usize, grace: Duration) {
        self.grace = grace;
        self.bytes.clear();
        self.bytes.resize(OUT_HEADER_LEN, 0);
        self.room = room;
    }

    /// How many more bytes fit.
    pub(super) fn left(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    /// Whether all that was put in fits what the guest left.
    pub(super) fn fits(&self) -> bool {
        self.bytes.len() <= self.room
    }

    /// Writes the header of an answer that is `more` bytes longer than what is in here.
    pub(super) fn finish(&mut self, unique: u64, error: i32, more: u32) -> &[u8] {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).saturating_add(more);
        let mut header = [0; OUT_HEADER_LEN];
        for (to, from) in header
            .iter_mut()
            .zip(len.to_le_bytes().into_iter().chain(error.to_le_bytes()).chain(unique.to_le_bytes()))
        {
            *to = from;
        }
        if let Some(place) = self.bytes.get_mut(..OUT_HEADER_LEN) {
            place.copy_from_slice(&header);
        }
        &self.bytes
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    /// Lets `fill` fill up to `len` bytes; those it says it did are kept.
    pub(super) fn fill<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let start = self.bytes.len();
        self.zeros(len);
        let filled = fill(self.bytes.get_mut(start..).unwrap_or_default());
        self.bytes.truncate(start + filled.as_ref().map_or(0, |filled| (*filled).min(len)));
        filled.map(|_| ())
    }

    /// struct fuse_attr
    fn attributes(&mut self, attributes: &Attributes, flags: u32) {
        let flags = flags | if attributes.mapped { flag::ATTR_DAX } else { 0 };
        self.u64(attributes.ino);
        self.u64(attributes.size);
        self.u64(attributes.blocks);
        for (seconds, _) in [attributes.atime, attributes.mtime, attributes.ctime] {
            self.u64(seconds as u64);
        }
        for (_, nanoseconds) in [attributes.atime, attributes.mtime, attributes.ctime] {
            self.u32(nanoseconds);
        }
        self.u32(attributes.mode);
        self.u32(attributes.nlink);
        self.u32(attributes.uid);
        self.u32(attributes.gid);
        self.u32(encode_device(attributes.rdev));
        self.u32(attributes.blksize);
        self.u32(flags);
    }

    /// struct fuse_entry_out
    pub(super) fn entry(&mut self, entry: &Entry) {
        self.u64(entry.node);
        self.u64(entry.generation);
        let attributes_timeout = entry.attributes_timeout.max(self.grace);
        self.u64(entry.entry_timeout.as_secs());
        self.u64(attributes_timeout.as_secs());
        self.u32(entry.entry_timeout.subsec_nanos());
        self.u32(attributes_timeout.subsec_nanos());
        self.attributes(&entry.attributes, if entry.submount { flag::ATTR_SUBMOUNT } else { 0 });
    }

    /// struct fuse_attr_out
    pub(super) fn attributes_out(&mut self, attributes: &Attributes, timeout: Duration) {
        let directory = attributes.mode & libc::S_IFMT == libc::S_IFDIR;
        let timeout = timeout.max(if directory { self.grace } else { Duration::ZERO });
        self.u64(timeout.as_secs());
        self.u32(timeout.subsec_nanos());
        self.u32(0);
        self.attributes(attributes, 0);
    }

    /// struct fuse_statx_out
    pub(super) fn statx_out(&mut self, attributes: &Attributes, timeout: Duration) {
        self.u64(timeout.as_secs());
        self.u32(timeout.subsec_nanos());
        self.u32(0); // flags
        self.zeros(16);
        // struct fuse_statx, which is struct statx
        self.u32(attributes.mask);
        self.u32(attributes.blksize);
        self.u64(attributes.statx_attributes.0);
        self.u32(attributes.nlink);
        self.u32(attributes.uid);
        self.u32(attributes.gid);
        self.u16(attributes.mode as u16);
        self.u16(0);
        self.u64(attributes.ino);
        self.u64(attributes.size);
        self.u64(attributes.blocks);
        self.u64(attributes.statx_attributes.1);
        let birth = attributes.btime.unwrap_or_default();
        for (seconds, nanoseconds) in [attributes.atime, birth, attributes.ctime, attributes.mtime] {
            self.u64(seconds as u64);
            self.u32(nanoseconds);
            self.u32(0);
        }
        for number in [attributes.rdev, attributes.dev] {
            self.u32(number.major);
            self.u32(number.minor);
        }
        self.zeros(14 * 8);
    }

    /// struct fuse_open_out
    pub(super) fn opened(&mut self, opened: &Opened) {
        let mut flags = 0;
        for (set, bit) in [
            (opened.keep_cache, flag::FOPEN_KEEP_CACHE),
            (opened.direct_io, flag::FOPEN_DIRECT_IO | flag::FOPEN_PARALLEL_DIRECT_WRITES),
            (opened.cache_dir, flag::FOPEN_CACHE_DIR),
            (opened.no_flush, flag::FOPEN_NOFLUSH),
        ] {
            flags |= if set { bit } else { 0 };
        }
        self.u64(opened.handle);
        self.u32(flags);
        self.u32(0);
    }

    /// struct fuse_statfs_out
    pub(super) fn statistics(&mut self, statistics: &FileSystemStatistics) {
        self.u64(statistics.blocks);
        self.u64(statistics.bfree);
        self.u64(statistics.bavail);
        self.u64(statistics.files);
        self.u64(statistics.ffree);
        self.u32(statistics.bsize);
        self.u32(statistics.namelen);
        self.u32(statistics.frsize);
        self.zeros(28);
    }

    /// Length of a struct fuse_dirent (fuse_direntplus if `plus`) with a name of `name_len` bytes.
    pub(super) fn dirent_len(name_len: usize, plus: bool) -> usize {
        (DIRENT_LEN + name_len).next_multiple_of(8) + if plus { ENTRY_OUT_LEN } else { 0 }
    }

    /// struct fuse_dirent
    pub(super) fn dirent(&mut self, ino: u64, next_offset: u64, kind: u8, name: &[u8]) {
        self.u64(ino);
        self.u64(next_offset);
        self.u32(u32::try_from(name.len()).unwrap_or(0));
        self.u32(u32::from(kind));
        self.bytes(name);
        self.zeros((DIRENT_LEN + name.len()).next_multiple_of(8) - DIRENT_LEN - name.len());
    }

    /// The entry of a struct fuse_direntplus of which the guest learns no more than the name.
    pub(super) fn no_entry(&mut self) {
        self.zeros(ENTRY_OUT_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_lengths_of_the_kernel() {
        let attributes = Attributes::default();
        let entry = Entry {
            node: 2,
            generation: 0,
            attributes,
            entry_timeout: Duration::from_millis(1500),
            attributes_timeout: Duration::ZERO,
            submount: true,
        };
        let opened =
            Opened { handle: 9, keep_cache: true, direct_io: false, cache_dir: false, no_flush: true };
        let mut reply = Reply::new();
        let mut len = |put: &dyn Fn(&mut Reply)| {
            reply.begin(4096, Duration::ZERO);
            put(&mut reply);
            reply.bytes.len() - OUT_HEADER_LEN
        };
        assert_eq!(len(&|reply| reply.entry(&entry)), 128);
        assert_eq!(len(&|reply| reply.attributes_out(&attributes, Duration::ZERO)), 104);
        assert_eq!(len(&|reply| reply.statx_out(&attributes, Duration::ZERO)), 288);
        assert_eq!(len(&|reply| reply.opened(&opened)), 16);
        assert_eq!(len(&|reply| reply.statistics(&FileSystemStatistics::default())), 80);
        assert_eq!(len(&|reply| reply.dirent(1, 2, 4, b"12345678")), Reply::dirent_len(8, false));
        assert_eq!(len(&|reply| reply.dirent(1, 2, 4, b"123456789")), 40);
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(encode_device(DeviceNumber { major: 8, minor: 1 }), 0x801);
        assert_eq!(encode_device(DeviceNumber { major: 0xfff, minor: 0x12345 }), 0x123f_ff45);
    }
}
