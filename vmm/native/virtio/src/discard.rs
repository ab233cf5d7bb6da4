//! Guest memory that the guest does not need goes back to the host.
//!
//! How depends on what is behind the memory; afterwards it reads as zeroes in each case but those named below, and
//! the guest may use it again at any time. Nothing here trusts the range: what does not lie in guest memory as a
//! whole is refused, and of pages that are only partly in it nothing is touched.
#![expect(unsafe_code, reason = "mappings")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::GuestRam;

/// How many ranges of private file mappings are replaced in a process. Each may be a mapping of its own for the
/// kernel, which allows 65530 of them (vm.max_map_count), and a guest chooses the ranges.
static REPLACEMENTS_LEFT: AtomicU32 = AtomicU32::new(16384);

/// What the kernel is told of all guest RAM, by number and name (madvise(2)): it stays out of forked children and out
/// of core dumps. A new mapping knows nothing of it.
pub const RAM_ADVICE: [(libc::c_int, &str); 2] =
    [(libc::MADV_DONTFORK, "MADV_DONTFORK"), (libc::MADV_DONTDUMP, "MADV_DONTDUMP")];

/// Gives `len` bytes at `guest_addr` back to the host, as far as they are whole pages; returns how many bytes that was.
///
/// - Anonymous memory and shared files (memfd): pages go, zeroes come.
/// - Private mappings of a file: replaced by anonymous memory. A process does so a limited number of times; then
///   what the guest had changed goes, and the file's contents come.
/// - Huge pages go as a whole or not at all.
///
/// What replaces a mapping is advised as RAM is at first ([`RAM_ADVICE`], and huge pages).
///
/// # Errors
/// InvalidInput: the range does not lie in guest memory; nothing was touched. Otherwise the kernel refused; a part
/// of the range may have been given back.
pub fn discard(ram: &GuestRam, guest_addr: u64, len: u64) -> io::Result<u64> {
    let addr = GuestAddress(guest_addr);
    let size = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    if !GuestMemoryBackend::check_range(ram, addr, size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (mut addr, mut left, mut discarded) = (addr, len, 0);
    while left > 0 {
        let region = ram.find_region(addr).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = addr.unchecked_offset_from(region.start_addr());
        let now = left.min(region.len() - offset);
        discarded += discard_in(region, offset, now)?;
        left -= now;
        addr = addr.unchecked_add(now);
    }
    Ok(discarded)
}

/// As [`discard`], of a range inside one region.
fn discard_in(region: &GuestRegionMmap<()>, offset: u64, len: u64) -> io::Result<u64> {
    let Some(granule) = granule(region)? else { return Ok(0) };
    let Some((offset, len)) = whole(offset, len, granule) else { return Ok(0) };
    let place = usize::try_from(offset).and_then(|offset| Ok((offset, usize::try_from(len)?)));
    let (start, size) = place.map_err(|_| io::ErrorKind::InvalidInput)?;
    let at = region.as_ptr().wrapping_add(start).cast();
    let shared = region.flags() & libc::MAP_TYPE != libc::MAP_PRIVATE;
    match region.file_offset() {
        Some(file) if shared => punch(file, offset, len)?,
        Some(_) if !huge(region) => replace(at, size, region.prot())?,
        None if shared => advise(at, size, libc::MADV_REMOVE)?,
        // Private huge pages of a file too: what would replace them is no huge page.
        _ => advise(at, size, libc::MADV_DONTNEED)?,
    }
    Ok(len)
}

fn huge(region: &MmapRegion<()>) -> bool {
    region.is_hugetlbfs() == Some(true) || region.flags() & libc::MAP_HUGETLB != 0
}

/// The unit in which the region's memory can go. None: it is not known.
fn granule(region: &MmapRegion<()>) -> io::Result<Option<u64>> {
    if !huge(region) {
        // SAFETY: a plain integer.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        return Ok(u64::try_from(size).ok());
    }
    if let Some(file) = region.file_offset() {
        // SAFETY: all zeroes are a valid statfs.
        let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the place is a live local.
        if unsafe { libc::fstatfs(file.file().as_raw_fd(), &raw mut facts) } != 0 {
            return Err(io::Error::last_os_error());
        }
        return Ok(u64::try_from(facts.f_bsize).ok());
    }
    // The size's logarithm is in the flags, or it is the host's default (mmap(2), MAP_HUGETLB).
    let logarithm = region.flags() >> libc::MAP_HUGE_SHIFT & libc::MAP_HUGE_MASK;
    Ok((logarithm != 0).then_some(1u64 << logarithm))
}

/// What of a range is whole units.
fn whole(offset: u64, len: u64, granule: u64) -> Option<(u64, u64)> {
    let first = offset.checked_next_multiple_of(granule)?;
    let end = offset.checked_add(len)?;
    let len = end.checked_sub(first)?;
    let len = len - len % granule;
    (len > 0).then_some((first, len))
}

fn outcome(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn punch(file: &FileOffset, offset: u64, len: u64) -> io::Result<()> {
    let place = file.start().checked_add(offset).map(i64::try_from).zip(Some(i64::try_from(len)));
    let Some((Ok(offset), Ok(len))) = place else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open; no pointers are passed.
    outcome(unsafe { libc::fallocate(file.file().as_raw_fd(), mode, offset, len) })
}

fn advise(at: *mut libc::c_void, len: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range lies in a mapping of guest memory (`discard`), which is the guest's: nothing of Rust's is in
    // it, and whoever reads it expects it to change at any time.
    outcome(unsafe { libc::madvise(at, len, advice) })
}

fn replace(at: *mut libc::c_void, len: usize, protection: libc::c_int) -> io::Result<()> {
    let take = |left: u32| left.checked_sub(1);
    if REPLACEMENTS_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
        return advise(at, len, libc::MADV_DONTNEED);
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: as for `advise`; whoever accesses the range meanwhile finds the old page or the new one.
    let made = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    if made != libc::MAP_FAILED {
        RAM_ADVICE.iter().try_for_each(|(advice, _)| advise(at, len, *advice))?;
        // As for the rest of RAM that is no file's. EINVAL: a kernel without transparent huge pages.
        let _ = advise(at, len, libc::MADV_HUGEPAGE);
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // The kernel may have taken away what was there before it ran out of memory (then this says ENOMEM). A hole in
    // guest memory would be worse than a lost VM: the process's next mapping could lie in it.
    if advise(at, len, libc::MADV_DONTNEED).is_err() {
        std::process::abort();
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_units_count() {
        let page = 4096;
        assert_eq!(whole(0, page, page), Some((0, page)));
        assert_eq!(whole(1, 2 * page - 1, page), Some((page, page)));
        assert_eq!(whole(page, 3 * page - 1, page), Some((page, 2 * page)));
        for (offset, len) in [(0, 0), (0, page - 1), (1, page), (page - 1, page + 1 - 1), (u64::MAX, 1)] {
            assert_eq!(whole(offset, len, page), None, "{offset} {len}");
        }
        assert_eq!(whole(u64::MAX - 10, 20, page), None);
    }

    #[test]
    fn a_process_replaces_no_more_mappings_than_it_may_and_gives_memory_back_all_the_same() {
        let page = 4096;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses a place where nothing is.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        for _ in 0..16384 + 10 {
            replace(at, page, libc::PROT_READ | libc::PROT_WRITE).unwrap();
        }
        assert_eq!(REPLACEMENTS_LEFT.load(Ordering::Relaxed), 0);
        // SAFETY: mapped above, and written by nobody else.
        unsafe { at.cast::<u8>().write(7) };
        replace(at, page, libc::PROT_READ | libc::PROT_WRITE).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { at.cast::<u8>().read() }, 0);
        // SAFETY: mapped above, and not used any more.
        unsafe { libc::munmap(at, page) };
    }
}
