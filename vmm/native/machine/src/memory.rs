//! Guest RAM and what it is made of.
//!
//! The regions are the plan's; the backend decides who else can have the pages. Whatever it is, the mapping is kept
//! out of forked children and core dumps, and lies in this process as in the guest modulo 2 MiB, without which KVM
//! could not map huge pages as such.
#![expect(unsafe_code, reason = "mappings")]

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use strato_jail::Role;
use strato_plumbing::failure::last_errno;
use strato_plumbing::{Failure, Result, check};
use strato_virtio::thread::spawn;
use strato_virtio::{GuestRam, GuestRamHandle, RAM_ADVICE};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    VolatileMemory,
};

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
/// What one thread populates in some tens of milliseconds, and how many threads there are at most.
const POPULATED_BY_ONE: usize = 256 << 20;
const MAX_POPULATING: usize = 16;

/// One run of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub guest_addr: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Who has the pages.
#[derive(Debug)]
pub enum Backend {
    /// Nobody else.
    Anonymous,
    /// Whoever is given the descriptor of the memfd.
    Memfd,
    /// A private mapping of a file: pages that the guest does not write stay the file's. Nobody may change it.
    File(File),
}

/// Page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Transparent huge pages where the host gives them.
    Advised,
    /// Pages of 2 MiB from hugetlbfs, all of them reserved at once.
    TwoMiB,
}

/// What RAM is wanted.
#[derive(Debug)]
pub struct MemoryConfig {
    /// Who has the pages.
    pub backend: Backend,
    /// The regions, ascending.
    pub regions: Vec<Region>,
    /// Page sizes.
    pub huge_pages: HugePages,
    /// Whether every page is there before the guest runs.
    pub prealloc: bool,
}

impl MemoryConfig {
    fn check(&self) -> Result<u64> {
        let unit = match self.huge_pages {
            HugePages::Advised => PAGE,
            HugePages::TwoMiB => HUGE_PAGE,
        };
        let (mut free, mut total) = (0u64, 0u64);
        for Region { guest_addr, bytes } in &self.regions {
            let end = guest_addr.checked_add(*bytes);
            let whole = guest_addr.is_multiple_of(unit) && bytes.is_multiple_of(unit) && *bytes > 0;
            match end {
                Some(end) if whole && *guest_addr >= free => free = end,
                _ => {
                    return Err(Failure::refused(format!(
                        "RAM region at {guest_addr:#x} of {bytes:#x} bytes must be whole pages of {unit:#x} and \
                         lie behind the one before it"
                    )));
                }
            }
            total = total.saturating_add(*bytes);
        }
        if total == 0 {
            return Err(Failure::refused("RAM needs at least one region"));
        }
        Ok(total)
    }
}

/// Makes guest RAM.
///
/// # Errors
/// Regions that cannot be, a file that is too short, or the host has not got the memory.
pub fn guest_ram(config: MemoryConfig) -> Result<GuestRamHandle> {
    let total = config.check()?;
    let MemoryConfig { backend, regions, huge_pages, prealloc } = config;
    let huge = huge_pages == HugePages::TwoMiB;
    let (file, mut flags) = match backend {
        Backend::Anonymous => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        Backend::Memfd => (Some(memfd(total, huge)?), libc::MAP_SHARED),
        Backend::File(_) if huge => {
            return Err(Failure::refused("RAM from a file has no pages of hugetlbfs: use transparent ones"));
        }
        Backend::File(file) => (Some(long_enough(file, total)?), libc::MAP_PRIVATE),
    };
    match (huge, &file) {
        // Without a reservation a missing huge page would be a SIGBUS at the first touch.
        (true, None) => flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        (true, Some(_)) => {}
        (false, _) => flags |= libc::MAP_NORESERVE,
    }
    let file = file.map(Arc::new);
    let mut offset = 0;
    let mut mapped = Vec::with_capacity(regions.len());
    for Region { guest_addr, bytes } in regions {
        let mapping = map(file.as_ref().map(|file| (file, offset)), bytes, flags, huge)?;
        // Pages of a file's private mapping are copied one by one.
        let transparent = !huge && (file.is_none() || flags & libc::MAP_SHARED != 0);
        advise(&mapping, transparent)?;
        if prealloc {
            populate(&mapping)?;
        }
        offset += bytes;
        let region = GuestRegionMmap::new(mapping, GuestAddress(guest_addr));
        mapped.push(region.ok_or_else(|| Failure::refused("RAM reaches beyond the guest's addresses"))?);
    }
    let ram = GuestRam::from_regions(mapped);
    ram.map(Arc::new).map_err(|error| Failure::refused(format!("RAM regions do not fit together: {error}")))
}

fn memfd(bytes: u64, huge: bool) -> Result<File> {
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if huge {
        flags |= libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    }
    // SAFETY: the name is a C string of static storage.
    let raw = unsafe { libc::memfd_create(c"strato-ram".as_ptr(), flags) };
    check(raw, || "Cannot make a memfd for RAM".into())?;
    // SAFETY: memfd_create returned it just now; nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    file.set_len(bytes).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::ENOMEM);
        Failure::new(format!("Cannot make a memfd of {bytes} bytes for RAM"), errno)
    })?;
    // Whoever is given the descriptor must not be able to take pages from under the guest (SIGBUS).
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::fcntl(raw, libc::F_ADD_SEALS, seals) }, || "Cannot seal the memfd of RAM".into())?;
    Ok(file)
}

fn long_enough(file: File, bytes: u64) -> Result<File> {
    let metadata = file.metadata().map_err(|error| {
        Failure::new("Cannot look at the file for RAM", error.raw_os_error().unwrap_or(libc::EIO))
    })?;
    if metadata.len() < bytes {
        return Err(Failure::refused(format!(
            "File for RAM has {} bytes, the guest wants {bytes}: make it longer",
            metadata.len()
        )));
    }
    Ok(file)
}

fn map(file: Option<(&Arc<File>, u64)>, bytes: u64, flags: i32, huge: bool) -> Result<MmapRegion> {
    let size = usize::try_from(bytes).map_err(|_| Failure::refused("RAM exceeds this host's addresses"))?;
    let failed = |error| {
        let errno = match error {
            MmapRegionError::Mmap(error) => error.raw_os_error(),
            _ => None,
        };
        let hint = if huge { " in huge pages (see /proc/sys/vm/nr_hugepages)" } else { "" };
        Failure::new(format!("Cannot map {bytes} bytes of RAM{hint}"), errno.unwrap_or(libc::ENOMEM))
    };
    // The kernel aligns files whose pages can be huge.
    let _fillers = if file.is_none() && !huge { make_way(size) } else { None };
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_hugetlbfs(huge);
    if let Some((file, offset)) = file {
        builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
    }
    builder.build().map_err(failed)
}

/// Sees to it that the next mapping of `size` bytes begins at a multiple of 2 MiB, as guest addresses of RAM do: KVM
/// maps huge pages as such only then. Linux does so itself from 6.7 on.
///
/// The kernel takes the highest place that is large enough. What is returned fills that place down to where the next
/// mapping fits; if another thread comes between, huge pages are not used and nothing else is lost.
fn make_way(size: usize) -> Option<(MmapRegion, MmapRegion)> {
    let reserve = |size| MmapRegionBuilder::<()>::new(size).with_mmap_prot(libc::PROT_NONE).build().ok();
    let first = reserve(size)?;
    let excess = (first.as_ptr() as usize).wrapping_sub(size) % HUGE_PAGE as usize;
    if (first.as_ptr() as usize).is_multiple_of(HUGE_PAGE as usize) {
        return None;
    }
    // At least `size`, or it could find a smaller place higher up.
    let short = size % HUGE_PAGE as usize;
    let filler = size - short + excess + if excess < short { HUGE_PAGE as usize } else { 0 };
    Some((first, reserve(filler)?))
}

/// Keeps RAM out of forked children and core dumps, and asks for huge pages where they can be had for the asking.
fn advise(mapping: &MmapRegion, transparent: bool) -> Result<()> {
    let huge = transparent.then_some((libc::MADV_HUGEPAGE, "MADV_HUGEPAGE"));
    for (number, name) in RAM_ADVICE.into_iter().chain(huge) {
        // SAFETY: pointer and length are those of the mapping; none of these changes what it contains.
        let outcome = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), number) };
        // EINVAL of the last one: a kernel without transparent huge pages.
        if outcome != 0 && number != libc::MADV_HUGEPAGE {
            return Err(Failure::last(format!("Cannot advise RAM by {name}")));
        }
    }
    Ok(())
}

/// Makes every page present and writable: by several threads where there is much, for the kernel clears each page.
fn populate(mapping: &MmapRegion) -> Result<()> {
    let (begin, size) = (mapping.as_ptr() as usize, mapping.size());
    let most = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_POPULATING);
    let each = size.div_ceil((size / POPULATED_BY_ONE).clamp(1, most)).next_multiple_of(HUGE_PAGE as usize);
    let threads: Vec<_> = (0..size)
        .step_by(each)
        .map(|offset| {
            let len = each.min(size - offset);
            // SAFETY: the range is a part of the mapping, which outlives the thread: it is joined below. Populating
            // does not change what is there.
            let work = move || unsafe {
                let place = (begin + offset) as *mut libc::c_void;
                match libc::madvise(place, len, libc::MADV_POPULATE_WRITE) {
                    0 => 0,
                    _ => last_errno(),
                }
            };
            spawn(Some(Role::Ram), "ram", work)
        })
        .collect();
    let mut failed = 0;
    for thread in threads {
        let errno = thread.map(|thread| thread.join().unwrap_or(libc::ENOTRECOVERABLE));
        match errno.unwrap_or_else(|error| error.raw_os_error().unwrap_or(libc::EAGAIN)) {
            0 => {}
            errno => failed = errno,
        }
    }
    match failed {
        0 => Ok(()),
        // Linux before 5.14.
        libc::EINVAL => touch(mapping),
        errno => Err(Failure::new(format!("Cannot allocate {size} bytes of RAM"), errno)),
    }
}

fn touch(mapping: &MmapRegion) -> Result<()> {
    for offset in (0..mapping.size()).step_by(PAGE as usize) {
        let page = mapping.get_ref::<u8>(offset).map_err(|_| Failure::refused("RAM ends within a page"))?;
        page.store(page.load());
    }
    Ok(())
}

/// Makes RAM zeros, as it is for a guest that begins, and gives its pages back to the host. No vCPU may run.
///
/// # Errors
/// The host's kernel does not do it.
pub fn clear(ram: &GuestRam) -> Result<()> {
    for region in ram.iter() {
        let (addr, len) = (region.as_ptr().cast(), region.size());
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let outcome = match region.file_offset() {
            // SAFETY: pointer and length are those of a mapping of RAM, which its guest does not use now. Whoever
            // else has the memory sees zeros, as after any write.
            Some(_) if shared => unsafe { libc::madvise(addr, len, libc::MADV_REMOVE) },
            Some(_) => {
                // Discarded pages would be the file's again, so the file's mapping gives way to an empty one.
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
                // SAFETY: exactly the region's own addresses are mapped anew, with the access that they had; the
                // region unmaps them by address and length when it goes.
                let place = unsafe { libc::mmap(addr, len, region.prot(), flags, -1, 0) };
                if place == libc::MAP_FAILED {
                    return Err(Failure::last("Cannot make RAM empty"));
                }
                advise(region, true)?;
                0
            }
            // SAFETY: as for shared memory.
            None => unsafe { libc::madvise(addr, len, libc::MADV_DONTNEED) },
        };
        check(outcome, || "Cannot make RAM empty".into())?;
    }
    Ok(())
}
