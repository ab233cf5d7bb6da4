//! The device's crank: takes requests off the queues, gives their operations to the engine in batches, and
//! answers those that are done. Nothing here waits, but for [`Server::drain`].

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use strato_virtio::{DeviceFault, DeviceIo, Progress, RunningRing};

use super::backend::{CacheMode, Disk};
use super::bounced::Bounces;
use super::engine::{Done, Engine, Job};
use super::metrics::BlockMetrics;
use super::queue::{self, ID_LEN, Request, Status};
use super::request::{Active, Answer, Next, Tools};
use crate::limits::{Limiter, Limits};
use crate::linger::Linger;
use crate::timer::Timer;

/// Most requests in flight in all queues together; more wait in their rings.
pub(super) const MAX_IN_FLIGHT: usize = 256;

/// A batch ends at this many bytes: data in the page cache is copied while it is submitted, and the guest goes on
/// with the first request of a batch while the others are copied.
const BATCH_BYTES: u64 = 1 << 18;
/// Small requests of which the driver is told at once, as long as it has more in its ring: an interrupt for each
/// costs it more than the request does.
const ANSWERS_AT_ONCE: u32 = 8;
/// Rounds in one go; commands to the device thread wait for no more.
const MAX_ROUNDS: usize = 64;

#[derive(Debug, Default)]
struct QueueState {
    linger: Linger,
    /// There may be something in the ring.
    pending: bool,
    /// Kicks are suppressed.
    quiet: bool,
    /// How many were answered since the driver was told last.
    answered: u32,
    /// Bytes of those.
    answered_bytes: u64,
}

/// Why requests stay in their rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// The next one needs what those in flight have: a place, a bounce buffer, or the disk for itself.
    Busy,
    /// A limit.
    Throttled,
}

pub(super) struct Server {
    pub(super) disk: Disk,
    pub(super) readonly: bool,
    pub(super) serial: String,
    /// Writes are on the medium when they are answered.
    pub(super) durable: bool,
    pub(super) metrics: Arc<BlockMetrics>,
    engine: Box<dyn Engine>,
    limiter: Limiter,
    timer: Timer,
    bounces: Bounces,
    queues: Vec<QueueState>,
    /// The queue whose turn is next.
    turn: usize,
    hold: Option<Hold>,
    slots: Vec<Active>,
    free: Vec<usize>,
    in_flight: usize,
    /// The request that has the disk for itself.
    alone: Option<usize>,
    done: Vec<Done>,
}

impl Server {
    pub(super) fn new(
        disk: Disk,
        engine: Box<dyn Engine>,
        limiter: Limiter,
        queues: usize,
        metrics: Arc<BlockMetrics>,
    ) -> io::Result<Self> {
        Ok(Self {
            disk,
            readonly: false,
            serial: String::new(),
            durable: false,
            metrics,
            engine,
            limiter,
            timer: Timer::new()?,
            bounces: Bounces::default(),
            queues: std::iter::repeat_with(QueueState::default).take(queues).collect(),
            turn: 0,
            hold: None,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            alone: None,
            done: Vec::new(),
        })
    }

    pub(super) fn engine_fd(&self) -> RawFd {
        self.engine.ready_fd()
    }

    pub(super) fn timer_fd(&self) -> RawFd {
        self.timer.fd()
    }

    pub(super) fn queue_started(&mut self, queue: u16) {
        if let Some(state) = self.queues.get_mut(usize::from(queue)) {
            *state = QueueState::default();
        }
    }

    pub(super) fn look_into(&mut self, queue: u16) {
        if let Some(state) = self.queues.get_mut(usize::from(queue)) {
            state.pending = true;
        }
    }

    pub(super) fn timer_expired(&mut self) {
        self.timer.expired();
        self.release(Hold::Throttled);
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limiter.configure(limits, Instant::now());
        self.timer.disarm();
        self.release(Hold::Throttled);
    }

    fn release(&mut self, hold: Hold) {
        if self.hold == Some(hold) {
            self.hold = None;
        }
    }

    /// Does what there is to do until there is nothing left, or enough has been done in one go.
    pub(super) fn work(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        for _ in 0..MAX_ROUNDS {
            let taken = self.take_from_queues(io);
            // What came before a fault is carried out all the same.
            let flushed = self.engine.flush();
            let collected = self.collect(io);
            self.announce(io, !matches!(taken, Ok(true)))?;
            let (taken, collected) = (taken?, collected?);
            if !taken && !collected {
                return Ok(if flushed { Progress::Idle } else { Progress::Again });
            }
        }
        self.announce(io, true)?;
        Ok(Progress::Again)
    }

    /// True if anything was taken.
    fn take_from_queues(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, DeviceFault> {
        let mut taken = false;
        for _ in 0..self.queues.len() {
            let queue = self.turn;
            if self.hold.is_some() {
                break;
            }
            taken |= self.take_from(io, queue)?;
            if self.hold.is_none() {
                // One that was held back goes on with the same request.
                self.turn = (queue + 1) % self.queues.len();
            }
        }
        Ok(taken)
    }

    fn take_from(&mut self, io: &mut DeviceIo<'_>, index: usize) -> Result<bool, DeviceFault> {
        let Some(state) = self.queues.get_mut(index) else { return Ok(false) };
        if !state.pending {
            return Ok(false);
        }
        let queue = index as u16;
        let Some(mut ring) = io.ring(queue) else {
            state.pending = false;
            return Ok(false);
        };
        if !state.quiet {
            state.quiet = true;
            ring.suppress_kicks()?;
        }
        let (mut taken, mut bytes) = (false, 0);
        while bytes < BATCH_BYTES {
            let Some(slot) = self.free_slot() else {
                self.hold = Some(Hold::Busy);
                break;
            };
            let outcome = self.take_one(&mut ring, queue, slot);
            match outcome {
                Ok(Taken::InFlight(len)) => bytes += len,
                // Its place is free again.
                Ok(Taken::Answered) => self.free.push(slot),
                Ok(Taken::Nothing) | Err(_) => {
                    self.free.push(slot);
                    outcome?;
                    break;
                }
            }
            taken = true;
        }
        if taken || self.hold.is_some() {
            return Ok(taken);
        }
        if let Some(state) = self.queues.get_mut(index)
            && state.answered > 0
            && state.linger.more_comes(|| ring.has_available())
        {
            return Ok(true);
        }
        // Only a look at an empty ring ends the work on it: more may have come while this was done.
        let more = ring.allow_kicks()?;
        if let Some(state) = self.queues.get_mut(index) {
            state.pending = more;
            state.quiet = false;
        }
        Ok(more)
    }

    fn free_slot(&mut self) -> Option<usize> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.slots.len() >= MAX_IN_FLIGHT {
            return None;
        }
        self.slots.push(Active::default());
        Some(self.slots.len() - 1)
    }

    fn take_one(
        &mut self,
        ring: &mut RunningRing<'_>,
        queue: u16,
        slot: usize,
    ) -> Result<Taken, DeviceFault> {
        let Some(active) = self.slots.get_mut(slot) else { return Ok(Taken::Nothing) };
        if !ring.pop(&mut active.chain)? {
            return Ok(Taken::Nothing);
        }
        active.queue = queue;
        let Some(request) = queue::parse(ring, &active.chain) else {
            // No room for header or status, so no way to answer.
            BlockMetrics::add(&self.metrics.requests, 1);
            ring.complete(active.chain.head(), 0)?;
            self.answered(queue, 0);
            return Ok(Taken::Answered);
        };
        active.request = request;
        let needs = match active.prepare(ring, request, &self.disk, self.readonly) {
            Ok(needs) => needs,
            Err(mut answer) => {
                if request == Request::Identify {
                    answer = identify(ring, active, &self.serial);
                }
                self.count(request, answer);
                self.answer(ring, slot, answer)?;
                return Ok(Taken::Answered);
            }
        };
        let busy = self.alone.is_some()
            || (needs.alone && self.in_flight > 0)
            || (needs.bounce && !self.bounces.available());
        let hold = if busy {
            Some(Hold::Busy)
        } else if let Err(wait) = self.limiter.admit(needs.bytes) {
            self.timer.arm(wait);
            BlockMetrics::add(&self.metrics.throttled, 1);
            Some(Hold::Throttled)
        } else {
            None
        };
        if hold.is_some() {
            self.hold = hold;
            active.finish(&mut self.bounces);
            ring.unpop();
            return Ok(Taken::Nothing);
        }
        if needs.alone {
            self.alone = Some(slot);
        }
        BlockMetrics::add(&self.metrics.bounced, u64::from(needs.bounce));
        self.in_flight += 1;
        let mut tools =
            Tools { disk: &self.disk, bounces: &mut self.bounces, durable: self.durable, cancelling: false };
        match active.begin(&mut tools) {
            Next::Work(work) => {
                self.engine.submit(Job { slot, work });
                Ok(Taken::InFlight(needs.bytes))
            }
            // A list of ranges that are all empty.
            Next::Answer(answer) => {
                self.count(request, answer);
                self.answer(ring, slot, answer)?;
                self.leave(slot);
                Ok(Taken::Answered)
            }
        }
    }

    /// Takes the jobs that are done and goes on with their requests. True if there were any.
    fn collect(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, DeviceFault> {
        let mut done = std::mem::take(&mut self.done);
        self.engine.reap(&mut done);
        let any = !done.is_empty();
        let mut outcome = Ok(any);
        for Done { job, result } in done.drain(..) {
            // All of them, even after a fault: their places are to be freed.
            if let Err(fault) = self.go_on(io, job, result) {
                outcome = Err(fault);
            }
        }
        self.done = done;
        outcome
    }

    fn go_on(
        &mut self,
        io: &mut DeviceIo<'_>,
        job: Job,
        result: io::Result<usize>,
    ) -> Result<(), DeviceFault> {
        let Job { slot, work } = job;
        let Some(active) = self.slots.get_mut(slot) else { return Ok(()) };
        let mut tools =
            Tools { disk: &self.disk, bounces: &mut self.bounces, durable: self.durable, cancelling: false };
        let answer = match active.go_on(work, result, &mut tools) {
            Next::Work(work) => {
                self.engine.submit(Job { slot, work });
                return Ok(());
            }
            Next::Answer(answer) => answer,
        };
        let (queue, request) = (active.queue, active.request);
        self.count(request, answer);
        // A device that waits for a reset answers nothing.
        let outcome = match io.ring(queue) {
            Some(mut ring) => self.answer(&mut ring, slot, answer),
            None => Ok(()),
        };
        self.leave(slot);
        self.free.push(slot);
        outcome
    }

    /// The request is no longer in flight.
    fn leave(&mut self, slot: usize) {
        if let Some(active) = self.slots.get_mut(slot) {
            active.finish(&mut self.bounces);
        }
        if self.alone == Some(slot) {
            self.alone = None;
        }
        self.in_flight -= 1;
        self.release(Hold::Busy);
    }

    fn answer(&mut self, ring: &mut RunningRing<'_>, slot: usize, answer: Answer) -> Result<(), DeviceFault> {
        let Some(active) = self.slots.get(slot) else { return Ok(()) };
        // Room for the status was seen when the request was parsed.
        let last = active.chain.writable_len().saturating_sub(1);
        ring.write(&active.chain, last, &[answer.status as u8]).map_err(|error| ring.fault(error))?;
        // The status byte is the last; between it and short data nothing was written.
        let written = if answer.written == last { last + 1 } else { answer.written.max(1) };
        ring.complete(active.chain.head(), written)?;
        let bytes = match active.request {
            Request::Read { len, .. } | Request::Write { len, .. } => len,
            _ => 0,
        };
        let queue = active.queue;
        self.answered(queue, bytes);
        Ok(())
    }

    fn answered(&mut self, queue: u16, bytes: u32) {
        if let Some(state) = self.queues.get_mut(usize::from(queue)) {
            state.answered += 1;
            state.answered_bytes += u64::from(bytes);
        }
    }

    /// Tells the driver of what was answered, unless more of it is to come soon and it is not `all`.
    fn announce(&mut self, io: &mut DeviceIo<'_>, all: bool) -> Result<(), DeviceFault> {
        for (index, state) in self.queues.iter_mut().enumerate() {
            let much = state.answered >= ANSWERS_AT_ONCE || state.answered_bytes >= BATCH_BYTES;
            if state.answered == 0 || !(all || much) {
                continue;
            }
            (state.answered, state.answered_bytes) = (0, 0);
            if let Some(mut ring) = io.ring(index as u16) {
                ring.notify()?;
            }
        }
        Ok(())
    }

    fn count(&self, request: Request, answer: Answer) {
        let metrics = &self.metrics;
        BlockMetrics::add(&metrics.requests, 1);
        if answer.status != Status::Ok {
            return BlockMetrics::add(&metrics.errors, 1);
        }
        match request {
            Request::Read { len, .. } => {
                BlockMetrics::add(&metrics.reads, 1);
                BlockMetrics::add(&metrics.read_bytes, u64::from(len));
            }
            Request::Write { len, .. } => {
                BlockMetrics::add(&metrics.writes, 1);
                BlockMetrics::add(&metrics.written_bytes, u64::from(len));
            }
            Request::Flush if self.disk.cache == CacheMode::None => {
                BlockMetrics::add(&metrics.flushes_ignored, 1);
            }
            Request::Flush => BlockMetrics::add(&metrics.flushes, 1),
            Request::Discard { .. } | Request::WriteZeroes { .. } => BlockMetrics::add(&metrics.ranges, 1),
            Request::Identify | Request::Unknown | Request::Malformed => {}
        }
    }

    /// Waits until nothing is in flight and answers it all. Requests not begun stay in their rings.
    pub(super) fn drain(&mut self, io: &mut DeviceIo<'_>) {
        self.engine.flush();
        while self.in_flight > 0 {
            // A fault leaves requests unanswered, as it should; they are finished all the same.
            if !matches!(self.collect(io), Ok(false)) {
                self.engine.flush();
                continue;
            }
            self.engine.wait();
        }
        // The same: a ring that cannot be told is one that needs a reset.
        let _ = self.announce(io, true);
    }

    /// Gives up what is in flight: its driver is gone.
    pub(super) fn cancel(&mut self) {
        self.engine.cancel();
        while self.in_flight > 0 {
            let mut done = std::mem::take(&mut self.done);
            self.engine.reap(&mut done);
            if done.is_empty() {
                self.engine.wait();
            }
            for Done { job: Job { slot, work }, result } in done.drain(..) {
                let mut tools = Tools {
                    disk: &self.disk,
                    bounces: &mut self.bounces,
                    durable: self.durable,
                    cancelling: true,
                };
                // Takes the buffers back; what it would do next is not done.
                if let Some(active) = self.slots.get_mut(slot) {
                    active.go_on(work, result, &mut tools);
                }
                self.leave(slot);
                self.free.push(slot);
            }
            self.done = done;
        }
    }

    /// Back to the beginning; limits stay as they are, so that a guest cannot reset its way around them.
    pub(super) fn reset(&mut self) {
        self.queues.iter_mut().for_each(|state| *state = QueueState::default());
        self.turn = 0;
        self.hold = None;
        self.timer.disarm();
    }
}

/// What became of one look into a ring.
enum Taken {
    /// The ring is empty, or what is in it has to wait.
    Nothing,
    Answered,
    /// A request with that many bytes.
    InFlight(u64),
}

fn identify(ring: &RunningRing<'_>, active: &Active, serial: &str) -> Answer {
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    match ring.write(&active.chain, 0, &id) {
        Ok(()) => Answer { status: Status::Ok, written: ID_LEN as u32 },
        Err(_) => Answer::FAILED,
    }
}
