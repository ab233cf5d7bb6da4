//! Requests that direct I/O does not take as they are: guest buffers without the alignment that the disk
//! wants, or sectors that are not whole blocks of it. They go through memory of the host's own, piece by
//! piece; where a write covers a block only in part, the block is read first.

use std::io;

use strato_virtio::{Chain, GuestRamHandle};

use super::buffers::{BOUNCE_LEN, Bounce, Buffers};
use super::engine::Work;
use super::queue::{HEADER_LEN, Status};
use super::request::{Answer, Next, Tools};

/// Most bounce buffers in use at a time; more requests wait for one.
const MAX_BOUNCES: usize = 16;
/// Most that are kept for the next request.
const KEPT_BOUNCES: usize = 2;

/// The bounce buffers of a device.
#[derive(Debug, Default)]
pub(super) struct Bounces {
    kept: Vec<Bounce>,
    used: usize,
}

impl Bounces {
    pub(super) fn available(&self) -> bool {
        self.used < MAX_BOUNCES
    }

    fn take(&mut self) -> Bounce {
        self.used += 1;
        self.kept.pop().unwrap_or_else(Bounce::new)
    }

    fn put(&mut self, bounce: Bounce) {
        self.used = self.used.saturating_sub(1);
        if self.kept.len() < KEPT_BOUNCES {
            self.kept.push(bounce);
        }
    }
}

/// What the operation under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reading for a read.
    Read,
    /// Reading the blocks that a write covers in part.
    Fill,
    Write,
}

/// A transfer through a bounce buffer.
#[derive(Debug)]
pub(super) struct Bounced {
    ram: GuestRamHandle,
    write: bool,
    offset: u64,
    len: u32,
    done: u32,
    /// The disk's block.
    unit: u64,
    phase: Phase,
    /// Here while no operation uses it.
    bounce: Option<Bounce>,
}

/// The blocks that are moved at once, and where the request's data is in them.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: u64,
    len: usize,
    skip: usize,
    data: usize,
}

impl Bounced {
    pub(super) fn new(ram: GuestRamHandle, write: bool, offset: u64, len: u32, unit: u64) -> Self {
        Self { ram, write, offset, len, done: 0, unit, phase: Phase::Read, bounce: None }
    }

    /// Whole blocks around as much of the rest as the buffer holds. Blocks are far smaller than the buffer.
    fn window(&self) -> Window {
        let at = self.offset + u64::from(self.done);
        let end = self.offset + u64::from(self.len);
        let start = at / self.unit * self.unit;
        let stop = end.next_multiple_of(self.unit).min(start + BOUNCE_LEN as u64);
        let (len, skip) = ((stop - start) as usize, (at - start) as usize);
        Window { start, len, skip, data: (stop.min(end) - at) as usize }
    }

    pub(super) fn begin(&mut self, chain: &Chain, tools: &mut Tools<'_>) -> Next {
        let bounce = tools.bounces.take();
        self.next(bounce, chain, tools)
    }

    /// The operation that begins the next window.
    fn next(&mut self, bounce: Bounce, chain: &Chain, tools: &Tools<'_>) -> Next {
        let window = self.window();
        if !self.write || window.data != window.len {
            self.phase = if self.write { Phase::Fill } else { Phase::Read };
            let buffers = Buffers::Bounce(bounce, window.len);
            return Next::Work(Work::Read { offset: window.start, buffers });
        }
        self.store(bounce, window, chain, tools)
    }

    /// The operation that writes the window, with the request's data in it.
    fn store(&mut self, mut bounce: Bounce, window: Window, chain: &Chain, tools: &Tools<'_>) -> Next {
        self.phase = Phase::Write;
        let range = window.skip..window.skip + window.data;
        let copied = bounce
            .bytes_mut()
            .get_mut(range)
            .is_some_and(|data| chain.read_at(&self.ram, HEADER_LEN + self.done, data).is_ok());
        if !copied {
            return self.fail(bounce);
        }
        let buffers = Buffers::Bounce(bounce, window.len);
        Next::Work(Work::Write { offset: window.start, buffers, durable: tools.durable })
    }

    pub(super) fn go_on(
        &mut self,
        chain: &Chain,
        work: Work,
        result: io::Result<usize>,
        tools: &mut Tools<'_>,
    ) -> Next {
        let (Work::Read { buffers: Buffers::Bounce(bounce, _), .. }
        | Work::Write { buffers: Buffers::Bounce(bounce, _), .. }) = work
        else {
            return Next::Answer(Answer::FAILED);
        };
        let window = self.window();
        let Ok(moved) = result else { return self.fail(bounce) };
        // The end of a file that became shorter, or a medium that takes no more, is a short count too.
        if self.phase == Phase::Fill {
            return if moved >= window.len && !tools.cancelling {
                self.store(bounce, window, chain, tools)
            } else {
                self.fail(bounce)
            };
        }
        let data = moved.saturating_sub(window.skip).min(window.data);
        if self.phase == Phase::Read {
            let copied = bounce
                .bytes()
                .get(window.skip..window.skip + data)
                .is_some_and(|data| chain.write_at(&self.ram, self.done, data).is_ok());
            if !copied {
                return self.fail(bounce);
            }
        }
        // At most `len`, by the window.
        self.done += data as u32;
        if data == 0 || (tools.cancelling && self.done < self.len) {
            return self.fail(bounce);
        }
        if self.done < self.len {
            return self.next(bounce, chain, tools);
        }
        self.bounce = Some(bounce);
        Next::Answer(Answer { status: Status::Ok, written: if self.write { 0 } else { self.len } })
    }

    fn fail(&mut self, bounce: Bounce) -> Next {
        self.bounce = Some(bounce);
        Next::Answer(Answer::FAILED)
    }

    pub(super) fn finish(self, bounces: &mut Bounces) {
        if let Some(bounce) = self.bounce {
            bounces.put(bounce);
        }
    }
}
