//! The disk: a raw file or a block device, and what it is like.
#![expect(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use super::queue::SECTOR;

/// What a flush of the guest does, and where data is before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// In the host's page cache; a flush does nothing. The disk may be lost with the host (scratch disks).
    None,
    /// In the host's page cache; a flush writes it to the medium (fdatasync).
    #[default]
    Writeback,
    /// Past the host's page cache (O_DIRECT); a flush empties the medium's own cache (fdatasync).
    Direct,
}

/// Sizes and alignments, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Smallest unit of the backing: a power of two from 512 on.
    pub(super) logical: u32,
    /// Unit that the backing writes without reading first: a power of two, at least `logical`.
    pub(super) physical: u32,
    /// What memory must be aligned to; 1 if there is no such rule.
    pub(super) memory: u32,
    /// Best size of a request, or 0.
    pub(super) optimal: u32,
}

/// A disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: Arc<File>,
    pub(super) cache: CacheMode,
    pub(super) geometry: Geometry,
    /// A file of a file system in memory: its data is there already, however it is read.
    pub(super) in_memory: bool,
    /// Whole logical blocks only.
    pub(super) sectors: u64,
}

// linux/fs.h; not in the libc crate for all targets.
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKIOOPT: libc::c_ulong = 0x1279;
const BLKSSZGET: libc::c_ulong = 0x1268;

const DEFAULT_PHYSICAL: u32 = 4096;

impl Disk {
    /// # Errors
    /// Neither a regular file nor a block device, or the file system does no direct I/O.
    pub(super) fn new(file: File, cache: CacheMode) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let text = "A disk must be a regular file or a block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        set_direct(&file, cache == CacheMode::Direct)?;
        let geometry = if kind.is_block_device() {
            block_device_geometry(&file, cache)?
        } else {
            file_geometry(&file, cache)?
        };
        let in_memory = kind.is_file() && in_memory(&file)?;
        let file = Arc::new(file);
        let sectors = size_in_sectors(&file, geometry.logical)?;
        Ok(Self { file, cache, geometry, in_memory, sectors })
    }

    /// The byte range of `sectors` from `sector` on, if it lies wholly on the disk.
    pub(super) fn range(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let end = sector.checked_add(sectors)?;
        if end > self.sectors {
            return None;
        }
        // The disk's size in bytes fits, so these do.
        Some((sector * SECTOR, sectors * SECTOR))
    }
}

/// Sectors in whole logical blocks of the file. Works for block devices too, whose metadata have no length.
pub(super) fn size_in_sectors(file: &File, logical: u32) -> io::Result<u64> {
    // Nobody else uses the position: all accesses name theirs.
    let mut file = file;
    let size = file.seek(SeekFrom::End(0))?;
    Ok(size / u64::from(logical) * (u64::from(logical) / SECTOR))
}

fn in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: statfs is plain data for which all-zero is a valid value.
    let mut told: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local of the right type.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut told) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(told.f_type == libc::TMPFS_MAGIC)
}

/// O_DIRECT as configured, however the file was opened.
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: no pointers are passed.
    if wanted != flags && unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn block_device_geometry(file: &File, cache: CacheMode) -> io::Result<Geometry> {
    let ask = |request: libc::c_ulong| {
        let mut answer: libc::c_uint = 0;
        // SAFETY: these requests write one unsigned int, and the pointer is to one.
        let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut answer) };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    };
    let logical = power_of_two(ask(BLKSSZGET)?, SECTOR as u32);
    let physical = power_of_two(ask(BLKPBSZGET).unwrap_or(logical), logical);
    let memory = if cache == CacheMode::Direct { logical } else { 1 };
    Ok(Geometry { logical, physical, memory, optimal: ask(BLKIOOPT).unwrap_or(0) })
}

fn file_geometry(file: &File, cache: CacheMode) -> io::Result<Geometry> {
    // The page cache takes anything.
    let mut geometry = Geometry { logical: SECTOR as u32, physical: DEFAULT_PHYSICAL, memory: 1, optimal: 0 };
    if cache == CacheMode::Direct {
        let (memory, offset) = direct_alignment(file);
        let block = u32::try_from(file.metadata()?.blksize()).unwrap_or(DEFAULT_PHYSICAL);
        // Where the file system does not tell, its block size is always enough.
        geometry.memory = power_of_two(memory.unwrap_or(block), 1);
        geometry.logical = power_of_two(offset.unwrap_or(block), SECTOR as u32);
        geometry.physical = geometry.physical.max(geometry.logical);
    }
    Ok(geometry)
}

/// What the file system says of memory and offsets in direct I/O (Linux 6.1).
fn direct_alignment(file: &File) -> (Option<u32>, Option<u32>) {
    // SAFETY: statx is plain data for which all-zero is a valid value.
    let mut told: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is empty and terminated, the pointer is to a local of the right type.
    let outcome = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        // Not libc's function: std declares it weak, and a static program would call a null pointer.
        let mask = libc::STATX_DIOALIGN;
        libc::syscall(libc::SYS_statx, file.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut told)
    };
    if outcome < 0 || told.stx_mask & libc::STATX_DIOALIGN == 0 {
        return (None, None);
    }
    let some = |value: u32| (value > 0).then_some(value);
    (some(told.stx_dio_mem_align), some(told.stx_dio_offset_align))
}

fn power_of_two(value: u32, least: u32) -> u32 {
    // No medium has blocks of a megabyte; the next power of two of anything less exists.
    value.clamp(least, 1 << 20).next_power_of_two()
}
