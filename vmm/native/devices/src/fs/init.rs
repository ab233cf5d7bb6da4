//! FUSE_INIT: what both sides can and want.

use super::backend::{CachePolicy, SessionOptions};
use super::decode::{Body, Errno};
use super::device::FsConfig;
use super::reply::Reply;
use super::window::page_size;
use super::wire::{self, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION, init};

/// Background requests that the guest may have under way at once: fewer than its ring is long.
const MAX_BACKGROUND: u16 = 256;

/// What the guest says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestOffer {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u64,
}

impl GuestOffer {
    /// struct fuse_init_in, in its old or new length.
    pub(super) fn parse(mut body: Body<'_>) -> Result<Self, Errno> {
        let (major, minor) = (body.u32()?, body.u32()?);
        if major != KERNEL_VERSION {
            // The rest has a form that only that version knows.
            return Ok(Self { major, minor, max_readahead: 0, flags: 0 });
        }
        let (max_readahead, low) = (body.u32()?, body.u32()?);
        let mut flags = u64::from(low);
        if flags & init::INIT_EXT != 0 {
            flags |= u64::from(body.u32()?) << 32;
        }
        Ok(Self { major, minor, max_readahead, flags })
    }
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) flags: u64,
}

impl Agreement {
    /// Whether all of `flags` were agreed on.
    pub(super) fn has(self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// What concerns the host half.
    pub(super) fn options(self) -> SessionOptions {
        SessionOptions {
            writeback: self.has(init::WRITEBACK_CACHE),
            kill_privileges: self.has(init::HANDLE_KILLPRIV_V2),
            submounts: self.has(init::SUBMOUNTS),
            posix_acl: self.has(init::POSIX_ACL),
            dont_mask: self.has(init::DONT_MASK),
            direct_io_mmap: self.has(init::DIRECT_IO_ALLOW_MMAP),
            mapped_files: self.has(init::MAP_ALIGNMENT | init::HAS_INODE_DAX),
        }
    }
}

/// What this device would like, whatever the guest is able to.
fn wanted(config: &FsConfig, remote_locks: bool) -> u64 {
    let mut wanted = init::ASYNC_READ
        | init::ATOMIC_O_TRUNC
        | init::BIG_WRITES
        | init::DONT_MASK
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::SUBMOUNTS
        | init::SETXATTR_EXT
        | init::INIT_EXT
        | init::CREATE_SUPP_GROUP;
    for (configured, flags) in [
        (config.cache == CachePolicy::Auto, init::AUTO_INVAL_DATA),
        // Attributes that may not be kept would be asked for twice.
        (config.cache != CachePolicy::None, init::DO_READDIRPLUS | init::READDIRPLUS_AUTO),
        (config.cache == CachePolicy::None, init::DIRECT_IO_ALLOW_MMAP),
        (config.writeback, init::WRITEBACK_CACHE),
        (config.window.is_some(), init::MAP_ALIGNMENT | init::HAS_INODE_DAX),
        // The host sees no write through the window: set-id bits are then the guest's to clear.
        (config.window.is_none(), init::HANDLE_KILLPRIV_V2),
        (config.posix_acl, init::POSIX_ACL),
        (remote_locks, init::POSIX_LOCKS | init::FLOCK_LOCKS),
    ] {
        wanted |= if configured { flags } else { 0 };
    }
    wanted
}

/// Agrees with the guest, or refuses.
///
/// None: the guest speaks a newer major version and is to ask again in ours.
pub(super) fn negotiate(
    config: &FsConfig,
    remote_locks: bool,
    offer: &GuestOffer,
) -> Result<Option<Agreement>, Errno> {
    if offer.major > KERNEL_VERSION {
        return Ok(None);
    }
    if offer.major < KERNEL_VERSION || offer.minor < MIN_KERNEL_MINOR_VERSION {
        return Err(Errno(libc::EPROTO));
    }
    Ok(Some(Agreement { flags: offer.flags & wanted(config, remote_locks) }))
}

/// struct fuse_init_out
pub(super) fn answer(reply: &mut Reply, offer: &GuestOffer, agreement: Option<Agreement>) {
    let agreement = agreement.unwrap_or_default();
    let flags = agreement.flags;
    let map_alignment =
        if agreement.has(init::MAP_ALIGNMENT) { page_size().trailing_zeros() as u16 } else { 0 };
    reply.u32(KERNEL_VERSION);
    reply.u32(KERNEL_MINOR_VERSION);
    reply.u32(offer.max_readahead);
    reply.u32(flags as u32);
    reply.u16(MAX_BACKGROUND);
    reply.u16(MAX_BACKGROUND / 4 * 3); // congestion_threshold
    reply.u32(wire::MAX_WRITE);
    reply.u32(1); // time_gran: nanoseconds
    reply.u16(wire::MAX_PAGES);
    reply.u16(map_alignment);
    reply.u32((flags >> 32) as u32);
    for _ in 0..7 {
        reply.u32(0); // max_stack_depth, unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX_6_12: u64 = 0x0000_01ff_7fff_ffff;

    fn offer(minor: u32, flags: u64) -> GuestOffer {
        GuestOffer { major: 7, minor, max_readahead: 131_072, flags }
    }

    fn agreed(config: &FsConfig, flags: u64) -> u64 {
        negotiate(config, false, &offer(41, flags)).unwrap().unwrap().flags
    }

    #[test]
    fn only_what_both_sides_want_is_agreed_on() {
        let config = FsConfig::default();
        let flags = agreed(&config, LINUX_6_12);
        for never in [init::MAP_ALIGNMENT, init::POSIX_LOCKS, init::FLOCK_LOCKS, init::WRITEBACK_CACHE] {
            assert_eq!(flags & never, 0);
        }
        assert_ne!(flags & init::HANDLE_KILLPRIV_V2, 0);
        assert_eq!(agreed(&config, init::ASYNC_READ | init::MAP_ALIGNMENT), init::ASYNC_READ);
        let late = FsConfig { writeback: true, ..FsConfig::default() };
        assert_eq!(agreed(&late, LINUX_6_12), flags | init::WRITEBACK_CACHE);
        let locks = negotiate(&config, true, &offer(41, LINUX_6_12)).unwrap().unwrap();
        assert_eq!(locks.flags, flags | init::POSIX_LOCKS | init::FLOCK_LOCKS);
    }

    #[test]
    fn old_and_foreign_versions_are_told_so() {
        let config = FsConfig::default();
        assert_eq!(negotiate(&config, false, &offer(26, 0)), Err(Errno(libc::EPROTO)));
        assert!(negotiate(&config, false, &offer(27, 0)).is_ok());
        let other = |major| GuestOffer { major, ..offer(0, 0) };
        assert_eq!(negotiate(&config, false, &other(6)), Err(Errno(libc::EPROTO)));
        assert_eq!(negotiate(&config, false, &other(8)), Ok(None));
    }

    #[test]
    fn upper_flags_count_only_if_announced() {
        let body = |low: u64| {
            let mut bytes = Vec::new();
            for field in [7u32, 41, 4096, low as u32, 1 << 4] {
                bytes.extend(field.to_le_bytes());
            }
            bytes
        };
        let with = GuestOffer::parse(Body::new(&body(init::INIT_EXT))).unwrap();
        assert_eq!(with.flags, init::INIT_EXT | init::DIRECT_IO_ALLOW_MMAP);
        assert_eq!(GuestOffer::parse(Body::new(&body(0))).unwrap().flags, 0);
        assert!(GuestOffer::parse(Body::new(&body(init::INIT_EXT)[..16])).is_err());
    }
}
