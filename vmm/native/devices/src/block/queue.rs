//! One request: a header that the device reads, data, and a status byte that it writes.

use strato_virtio::{Chain, RunningRing};

/// Bytes in a sector, the unit of all addresses, whatever the disk's own block size.
pub(super) const SECTOR: u64 = 512;

/// Length of the header.
pub(super) const HEADER_LEN: u32 = 16;
/// Length of one range of a discard or write-zeroes request.
pub(super) const RANGE_LEN: u32 = 16;
/// Length of the identification.
pub(super) const ID_LEN: usize = 20;

/// Ranges in one discard request and sectors in one range; told in the configuration.
pub(super) const MAX_DISCARD_RANGES: u32 = 32;
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The same for write-zeroes. Smaller: a file system that cannot do it makes it real writes, and a pause waits
/// for one request of each place in the queue.
pub(super) const MAX_ZERO_RANGES: u32 = 1;
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 17;

/// Answer of the device (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What the guest asks for, copied and checked as far as the chain alone tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Request {
    Read {
        sector: u64,
        len: u32,
    },
    Write {
        sector: u64,
        len: u32,
    },
    Flush,
    Identify,
    Discard {
        ranges: u32,
    },
    WriteZeroes {
        ranges: u32,
    },
    #[default]
    Unknown,
    /// Lengths that do not fit the operation.
    Malformed,
}

/// Reads the header. `None`: there is no room for header or status, so there is no way to answer.
pub(super) fn parse(ring: &RunningRing<'_>, chain: &Chain) -> Option<Request> {
    let mut raw = [0; HEADER_LEN as usize];
    ring.read(chain, 0, &mut raw).ok()?;
    let writable = chain.writable_len().checked_sub(1)?;
    let readable = chain.readable_len() - HEADER_LEN;
    let (operation, rest) = raw.split_first_chunk::<4>()?;
    let sector = u64::from_le_bytes(*rest.last_chunk::<8>()?);
    let whole = |len: u32| u64::from(len).is_multiple_of(SECTOR) && len > 0;
    let ranges = |most: u32, make: fn(u32) -> Request| {
        let count = readable / RANGE_LEN;
        if readable.is_multiple_of(RANGE_LEN) && (1..=most).contains(&count) {
            make(count)
        } else {
            Request::Malformed
        }
    };
    Some(match u32::from_le_bytes(*operation) {
        0 if whole(writable) => Request::Read { sector, len: writable },
        1 if whole(readable) => Request::Write { sector, len: readable },
        0 | 1 => Request::Malformed,
        4 => Request::Flush,
        8 if writable as usize >= ID_LEN => Request::Identify,
        8 => Request::Malformed,
        11 => ranges(MAX_DISCARD_RANGES, |ranges| Request::Discard { ranges }),
        13 => ranges(MAX_ZERO_RANGES, |ranges| Request::WriteZeroes { ranges }),
        _ => Request::Unknown,
    })
}

/// A range of sectors with its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

/// Copies range `index` out of the request.
pub(super) fn range(ring: &RunningRing<'_>, chain: &Chain, index: u32) -> Option<Range> {
    let mut raw = [0; RANGE_LEN as usize];
    ring.read(chain, HEADER_LEN + index * RANGE_LEN, &mut raw).ok()?;
    let (sector, rest) = raw.split_first_chunk::<8>()?;
    let (sectors, flags) = rest.split_first_chunk::<4>()?;
    Some(Range {
        sector: u64::from_le_bytes(*sector),
        sectors: u32::from_le_bytes(*sectors),
        flags: u32::from_le_bytes(*flags.first_chunk::<4>()?),
    })
}
