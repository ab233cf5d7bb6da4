//! The front end's memory table: mapping it, and translating the front end's addresses to the guest's.
#![expect(unsafe_code, reason = "descriptors")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use strato_virtio::{GuestRam, GuestRamHandle};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap};

#[derive(Clone, Copy, Debug)]
struct Translation {
    user_addr: u64,
    guest_addr: u64,
    size: u64,
}

/// Guest memory as the last SET_MEM_TABLE described it.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable {
    translations: Vec<Translation>,
}

impl MemoryTable {
    /// Maps the regions. The old table stays valid if this fails.
    ///
    /// # Errors
    /// A region that is no multiple of pages, lies beyond the end of its file, or overlaps another.
    pub(crate) fn map(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<(Self, GuestRamHandle)> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut translations = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            // Touching a page beyond the end of the file would be a SIGBUS for the whole process. So it must not
            // become shorter later: a memfd can be told, and QEMU's own says so already.
            // SAFETY: no pointers are passed.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
            let end = region.mmap_offset.checked_add(region.memory_size).ok_or(Error::InvalidParam)?;
            if file.metadata().map_err(Error::ReqHandlerError)?.len() < end {
                return Err(Error::InvalidParam);
            }
            let mapping = region.mmap_region(file)?;
            mapped.push(
                GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr))
                    .ok_or(Error::InvalidParam)?,
            );
            translations.push(Translation {
                user_addr: region.user_addr,
                guest_addr: region.guest_phys_addr,
                size: region.memory_size,
            });
        }
        mapped.sort_by_key(GuestMemoryRegion::start_addr);
        let ram = GuestRam::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        Ok((Self { translations }, Arc::new(ram)))
    }

    /// The guest-physical address of an address in the front end's own address space.
    pub(crate) fn guest_addr(&self, user_addr: u64) -> Result<u64> {
        self.translations
            .iter()
            .find_map(|region| {
                let offset = user_addr.checked_sub(region.user_addr)?;
                if offset < region.size { region.guest_addr.checked_add(offset) } else { None }
            })
            .ok_or(Error::InvalidParam)
    }
}
