//! One request of the guest on its way: which operations on the disk it takes, one after the other.

use std::io;

use strato_virtio::{Chain, GuestRamHandle, OwnedGuestBuffers, RunningRing};

use super::backend::Disk;
use super::bounced::{Bounced, Bounces};
use super::buffers::Buffers;
use super::engine::Work;
use super::queue::{self, HEADER_LEN, MAX_DISCARD_SECTORS, MAX_ZERO_SECTORS, Range, Request, SECTOR, Status};
use crate::block::CacheMode;

/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
const FLAG_UNMAP: u32 = 1;

/// How often the kernel may say "again" to one operation.
const MAX_RETRIES: u8 = 16;

/// What a request came to: its status, and how many bytes of data were written to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) written: u32,
}

impl Answer {
    pub(super) const OK: Self = Self { status: Status::Ok, written: 0 };
    pub(super) const FAILED: Self = Self { status: Status::IoError, written: 0 };
    pub(super) const UNSUPPORTED: Self = Self { status: Status::Unsupported, written: 0 };
}

/// What a request does next.
#[derive(Debug)]
pub(super) enum Next {
    Work(Work),
    Answer(Answer),
}

/// What a request needs beside its turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Bytes that count towards the bandwidth.
    pub(super) bytes: u64,
    /// A bounce buffer.
    pub(super) bounce: bool,
    /// Nothing else in flight: it writes back what it has read.
    pub(super) alone: bool,
}

/// What all requests share.
pub(super) struct Tools<'a> {
    pub(super) disk: &'a Disk,
    pub(super) bounces: &'a mut Bounces,
    /// Writes are on the medium when they are answered.
    pub(super) durable: bool,
    /// Nobody waits for the answers any more.
    pub(super) cancelling: bool,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// Straight between the disk and guest memory.
    Transfer {
        write: bool,
        offset: u64,
        len: u32,
    },
    /// The same through a bounce buffer.
    Bounced(Bounced),
    Flush,
    /// Ranges left, the next one last.
    Discard(Vec<Range>),
    Zero(Vec<Range>),
    /// Zeros are written where the backing cannot make a range zero: the next offset and the end.
    ZeroByWriting {
        next: u64,
        end: u64,
        rest: Vec<Range>,
    },
}

/// A request with its place in the ring. Reused from request to request.
#[derive(Debug, Default)]
pub(super) struct Active {
    pub(super) queue: u16,
    pub(super) chain: Chain,
    pub(super) request: Request,
    step: Step,
    /// The guest's buffers, while no operation uses them.
    buffers: OwnedGuestBuffers,
    retries: u8,
}

impl Active {
    /// Looks at a request. `Err` is its answer if the disk has nothing to do.
    pub(super) fn prepare(
        &mut self,
        ring: &RunningRing<'_>,
        request: Request,
        disk: &Disk,
        readonly: bool,
    ) -> Result<Needs, Answer> {
        self.retries = 0;
        match request {
            Request::Read { sector, len } => self.transfer(ring, false, sector, len, disk),
            Request::Write { .. } | Request::Discard { .. } | Request::WriteZeroes { .. } if readonly => {
                Err(Answer::FAILED)
            }
            Request::Write { sector, len } => self.transfer(ring, true, sector, len, disk),
            Request::Flush if disk.cache == CacheMode::None => Err(Answer::OK),
            Request::Flush => {
                self.step = Step::Flush;
                Ok(Needs::default())
            }
            Request::Discard { ranges } => {
                self.step = Step::Discard(self.ranges(ring, ranges, disk, MAX_DISCARD_SECTORS, 0)?);
                Ok(Needs::default())
            }
            Request::WriteZeroes { ranges } => {
                let ranges = self.ranges(ring, ranges, disk, MAX_ZERO_SECTORS, FLAG_UNMAP)?;
                let sectors: u64 = ranges.iter().map(|range| u64::from(range.sectors)).sum();
                self.step = Step::Zero(ranges);
                Ok(Needs { bytes: sectors * SECTOR, ..Needs::default() })
            }
            Request::Identify | Request::Unknown => Err(Answer::UNSUPPORTED),
            Request::Malformed => Err(Answer::FAILED),
        }
    }

    fn transfer(
        &mut self,
        ring: &RunningRing<'_>,
        write: bool,
        sector: u64,
        len: u32,
        disk: &Disk,
    ) -> Result<Needs, Answer> {
        let (offset, _) = disk.range(sector, u64::from(len) / SECTOR).ok_or(Answer::FAILED)?;
        let (ram, bytes) = (ring.ram_handle(), len as usize);
        let set = if write {
            self.buffers.set_readable(ram, &self.chain, HEADER_LEN, bytes)
        } else {
            self.buffers.set_writable(ram, &self.chain, 0, bytes)
        };
        // More pieces than the kernel takes, which is far more than the driver was told.
        set.map_err(|_| Answer::FAILED)?;
        let mut needs = Needs { bytes: u64::from(len), ..Needs::default() };
        self.step = Step::Transfer { write, offset, len };
        if disk.cache == CacheMode::Direct {
            let unit = u64::from(disk.geometry.logical);
            let on_blocks = (offset | u64::from(len)).is_multiple_of(unit);
            let memory = disk.geometry.memory as usize;
            let aligned = |piece: &libc::iovec| {
                (piece.iov_base as usize).is_multiple_of(memory)
                    && (piece.iov_len as u64).is_multiple_of(unit)
            };
            if !on_blocks || !self.buffers.iovecs().iter().all(aligned) {
                self.buffers.clear();
                self.step = Step::Bounced(Bounced::new(GuestRamHandle::clone(ram), write, offset, len, unit));
                needs.bounce = true;
                needs.alone = write && !on_blocks;
            }
        }
        Ok(needs)
    }

    /// All ranges, copied once and checked before any of them is touched; the first one last.
    fn ranges(
        &self,
        ring: &RunningRing<'_>,
        count: u32,
        disk: &Disk,
        most: u32,
        flags: u32,
    ) -> Result<Vec<Range>, Answer> {
        let mut ranges = Vec::with_capacity(count as usize);
        for index in (0..count).rev() {
            let range = queue::range(ring, &self.chain, index).ok_or(Answer::FAILED)?;
            if range.flags & !flags != 0 {
                return Err(Answer::UNSUPPORTED);
            }
            if range.sectors > most || disk.range(range.sector, u64::from(range.sectors)).is_none() {
                return Err(Answer::FAILED);
            }
            ranges.push(range);
        }
        Ok(ranges)
    }

    /// The first operation of a prepared request.
    pub(super) fn begin(&mut self, tools: &mut Tools<'_>) -> Next {
        match &mut self.step {
            Step::Transfer { write, offset, .. } => {
                let (write, offset) = (*write, *offset);
                Next::Work(self.transfer_work(write, offset, tools.durable))
            }
            Step::Bounced(bounced) => bounced.begin(&self.chain, tools),
            Step::Flush => Next::Work(Work::Flush),
            Step::Discard(_) | Step::Zero(_) => self.next_range(tools),
            Step::Idle | Step::ZeroByWriting { .. } => Next::Answer(Answer::FAILED),
        }
    }

    fn transfer_work(&mut self, write: bool, offset: u64, durable: bool) -> Work {
        let buffers = Buffers::Guest(std::mem::take(&mut self.buffers));
        if write { Work::Write { offset, buffers, durable } } else { Work::Read { offset, buffers } }
    }

    /// Goes on after an operation.
    pub(super) fn go_on(&mut self, work: Work, result: io::Result<usize>, tools: &mut Tools<'_>) -> Next {
        if let Err(error) = &result {
            let again = matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
            if again && self.retries < MAX_RETRIES && !tools.cancelling {
                self.retries += 1;
                return Next::Work(work);
            }
        }
        match (&mut self.step, work) {
            (
                Step::Transfer { write, offset, len },
                Work::Read { buffers, .. } | Work::Write { buffers, .. },
            ) => {
                if let Buffers::Guest(buffers) = buffers {
                    self.buffers = buffers;
                }
                let (write, len) = (*write, *len);
                match result {
                    // The file became shorter behind our back, or the medium takes no more.
                    Ok(0) | Err(_) => Next::Answer(Answer::FAILED),
                    Ok(count) => {
                        *offset += count as u64;
                        let offset = *offset;
                        self.buffers.advance(count);
                        if !self.buffers.is_empty() {
                            return Next::Work(self.transfer_work(write, offset, tools.durable));
                        }
                        Next::Answer(Answer { status: Status::Ok, written: if write { 0 } else { len } })
                    }
                }
            }
            (Step::Bounced(bounced), work) => bounced.go_on(&self.chain, work, result, tools),
            (Step::Flush, _) => Next::Answer(if result.is_ok() { Answer::OK } else { Answer::FAILED }),
            (Step::Discard(_), _) => match result {
                Err(error) if !not_possible(&error) => Next::Answer(Answer::FAILED),
                // A discard is a hint (virtio 1.2, 5.2.6.2).
                _ => self.next_range(tools),
            },
            (Step::Zero(rest), Work::Allocate { offset, len, .. }) => match result {
                Err(error) if not_possible(&error) => {
                    let rest = std::mem::take(rest);
                    self.step = Step::ZeroByWriting { next: offset, end: offset + len, rest };
                    self.next_range(tools)
                }
                Err(_) => Next::Answer(Answer::FAILED),
                Ok(_) => self.next_range(tools),
            },
            (Step::ZeroByWriting { next, .. }, _) => match result {
                Ok(0) | Err(_) => Next::Answer(Answer::FAILED),
                Ok(count) => {
                    *next += count as u64;
                    self.next_range(tools)
                }
            },
            _ => Next::Answer(Answer::FAILED),
        }
    }

    /// The next operation of a request that is a list of ranges.
    fn next_range(&mut self, tools: &Tools<'_>) -> Next {
        if tools.cancelling {
            return Next::Answer(Answer::FAILED);
        }
        if let Step::ZeroByWriting { next, end, rest } = &mut self.step {
            if next < end {
                let len = usize::try_from(*end - *next).unwrap_or(usize::MAX).min(Buffers::MOST_ZEROS);
                let buffers = Buffers::Zeros(len);
                return Next::Work(Work::Write { offset: *next, buffers, durable: tools.durable });
            }
            self.step = Step::Zero(std::mem::take(rest));
        }
        let (ranges, zero) = match &mut self.step {
            Step::Discard(ranges) => (ranges, false),
            Step::Zero(ranges) => (ranges, true),
            _ => return Next::Answer(Answer::FAILED),
        };
        while let Some(range) = ranges.pop() {
            // Checked when the request came; a disk that became smaller since fails.
            let Some((mut offset, mut len)) = tools.disk.range(range.sector, u64::from(range.sectors)) else {
                return Next::Answer(Answer::FAILED);
            };
            let mut mode = libc::FALLOC_FL_PUNCH_HOLE;
            if zero && range.flags & FLAG_UNMAP == 0 {
                mode = libc::FALLOC_FL_ZERO_RANGE;
            }
            if !zero {
                // Only what is whole blocks of the backing can be given back.
                let unit = u64::from(tools.disk.geometry.logical);
                let end = (offset + len) / unit * unit;
                offset = offset.next_multiple_of(unit);
                len = end.saturating_sub(offset);
            }
            if len > 0 {
                return Next::Work(Work::Allocate { mode, offset, len });
            }
        }
        if zero && tools.durable {
            self.step = Step::Flush;
            return Next::Work(Work::Flush);
        }
        Next::Answer(Answer::OK)
    }

    /// Lets go of everything that belongs to the request.
    pub(super) fn finish(&mut self, bounces: &mut Bounces) {
        self.buffers.clear();
        if let Step::Bounced(bounced) = std::mem::take(&mut self.step) {
            bounced.finish(bounces);
        }
    }
}

/// Whether the backing cannot do it this way at all.
fn not_possible(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::ENODEV))
}
