//! A subject between a mock driver and its host side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strato_virtio::mock::{MockNotifier, MockQueue};
use strato_virtio::{
    GuestRam, GuestRamHandle, Notification, RingLayout, RingStart, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1,
};
use vm_memory::GuestAddress;

use crate::choices::Choices;
use crate::side::{Carrier, Side};
use crate::subject::{Kind, QueueUse, Request, Subject};

/// Size of guest memory, which begins at 0.
pub const RAM: usize = 4 << 20;
/// Descriptors in each ring.
pub const RING_SIZE: u16 = 32;
/// Distance between two rings; the first is at this address.
pub const RING_STRIDE: u64 = 0x2000;
/// Indirect tables.
pub const TABLES: u64 = 1 << 20;
/// What devices read.
pub const READABLE: u64 = TABLES + (512 << 10);
/// What devices write; nothing outside it (and the used rings) may change.
pub const WRITABLE: u64 = 2 << 20;
/// End of that.
pub const WRITABLE_END: u64 = 3 << 20;

/// Memory consists of regions that meet in the middle of the first buffers of a driver.
const BORDERS: [u64; 2] = [READABLE + 0x9000, WRITABLE + 0x1_1000];
/// So far before a border the first buffer begins.
const BEFORE_BORDER: u64 = 20;

const PATTERN: u8 = 0xc5;

/// Long enough for a machine that does a hundred other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A chain that the device has.
#[derive(Clone, Debug)]
struct Outstanding {
    writable: Vec<(u64, u32)>,
}

/// One device under test.
pub struct Machine {
    /// The device.
    pub host: Side,
    /// The driver's side of each queue.
    pub queues: Vec<MockQueue>,
    /// What was notified, of a bare device.
    pub notifier: MockNotifier,
    carrier: Carrier,
    ram: GuestRamHandle,
    /// The device's name.
    pub name: &'static str,
    subject: Option<Box<dyn Subject>>,
    uses: &'static [QueueUse],
    outstanding: Vec<HashMap<u16, Outstanding>>,
    features: u64,
    next_table: u64,
    next_readable: u64,
    next_writable: u64,
}

/// Guest memory in several regions, without a hole.
fn regions() -> GuestRamHandle {
    let borders = [0, BORDERS[0], BORDERS[1], RAM as u64];
    let ranges: Vec<_> =
        borders.windows(2).map(|pair| (GuestAddress(pair[0]), (pair[1] - pair[0]) as usize)).collect();
    Arc::new(GuestRam::from_ranges(&ranges).unwrap())
}

impl Machine {
    /// A device of this kind whose driver has begun, with all features it offers.
    pub fn new(kind: &Kind) -> Self {
        Self::with_features(kind, u64::MAX)
    }

    /// As [`Self::new`], with those of the offered features that are in `features` too.
    pub fn with_features(kind: &Kind, features: u64) -> Self {
        Self::carried(Carrier::Bare, kind, features)
    }

    /// As [`Self::with_features`], on any carrier.
    pub fn carried(carrier: Carrier, kind: &Kind, features: u64) -> Self {
        let mut subject = (kind.make)();
        let notifier = MockNotifier::default();
        let mut host = Side::new(carrier, subject.core(), &notifier);
        let ram = regions();
        host.set_memory(&ram);
        let uses = subject.queues();
        assert_eq!(uses.len(), host.queue_sizes().len());
        let mut machine = Self {
            features: host.offered() & features | VIRTIO_F_VERSION_1,
            host,
            queues: Vec::new(),
            notifier,
            carrier,
            ram,
            name: kind.name,
            subject: Some(subject),
            uses,
            outstanding: Vec::new(),
            next_table: TABLES,
            next_readable: BORDERS[0] - BEFORE_BORDER,
            next_writable: BORDERS[1] - BEFORE_BORDER,
        };
        machine.begin();
        machine
    }

    /// A deadline for something that should happen soon.
    pub fn deadline(&self) -> Instant {
        Instant::now() + PATIENCE
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRamHandle {
        &self.ram
    }

    /// Number of queues.
    pub fn queue_count(&self) -> u16 {
        self.uses.len() as u16
    }

    /// How a queue is used.
    pub fn queue_use(&self, queue: u16) -> QueueUse {
        self.uses[usize::from(queue)]
    }

    /// The features that the driver accepts.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// A new driver: fresh rings, all started.
    pub fn begin(&mut self) {
        self.fresh_rings();
        self.host.begin(self.features, &self.queues);
    }

    fn fresh_rings(&mut self) {
        self.next_table = TABLES;
        self.next_readable = BORDERS[0] - BEFORE_BORDER;
        self.next_writable = BORDERS[1] - BEFORE_BORDER;
        self.queues = (1..)
            .zip(self.host.queue_sizes())
            .map(|(place, size)| MockQueue::new(&self.ram, place * RING_STRIDE, size.min(RING_SIZE)).0)
            .collect();
        if self.features & VIRTIO_F_EVENT_IDX != 0 {
            self.queues.iter_mut().for_each(MockQueue::use_event_idx);
        }
        self.outstanding = vec![HashMap::new(); self.uses.len()];
    }

    /// Starts one queue in its usual place.
    pub fn start(&mut self, queue: u16, next_avail: u16) {
        let layout = self.layout(queue);
        self.host.bare().start_ring(RingStart { queue, layout, next_avail, kick: None }).unwrap();
    }

    /// Where a ring lies.
    pub fn layout(&self, queue: u16) -> RingLayout {
        self.queues[usize::from(queue)].layout()
    }

    /// The device as after power-on, then a new driver.
    pub fn reset(&mut self) {
        self.host.reset();
        self.host.set_memory(&self.ram);
        self.begin();
    }

    /// Saves the device, and goes on with another one that is given the saved state. The driver notices
    /// nothing but a transport reset.
    pub fn move_to_another_device(&mut self) {
        let saved = self.host.save();
        let config = self.host.config(0, self.host.config_len());
        let obstacle = self.host.save_obstacle();
        let subject = self.subject.as_mut().unwrap();
        // Two devices cannot have one host side: the old one goes first.
        self.host = Side::new(self.carrier, Box::new(crate::subject::Nothing), &self.notifier);
        self.host = Side::new(self.carrier, subject.core(), &self.notifier);
        self.host.set_memory(&self.ram);
        if let Err(refusal) = self.host.restore(&saved) {
            let reason = obstacle.unwrap_or(refusal);
            assert!(subject.may_refuse_saved(&reason, &config), "{}: {reason}", self.name);
            self.begin();
        } else {
            assert_eq!(obstacle, None, "{}: restored all the same", self.name);
        }
    }

    /// Offers a request, cut into pieces at random. None if the ring is full.
    pub fn offer(&mut self, queue: u16, request: &Request, choices: &mut Choices<'_>) -> Option<u16> {
        let mut buffers = Vec::new();
        let readable_at = take(&mut self.next_readable, request.readable.len() as u64, READABLE..WRITABLE);
        self.queues[usize::from(queue)].write(readable_at, &request.readable);
        cut(&mut buffers, readable_at, request.readable.len() as u32, false, choices);
        let len = request.writable.min(256 << 10);
        let writable_at = take(&mut self.next_writable, u64::from(len), WRITABLE..WRITABLE_END);
        cut(&mut buffers, writable_at, len, true, choices);
        if buffers.is_empty() {
            buffers.push((readable_at, 0, choices.once_in(2)));
        }
        let driver = &mut self.queues[usize::from(queue)];
        let head = if choices.once_in(3) {
            let table = take(&mut self.next_table, 16 * buffers.len() as u64, TABLES..READABLE);
            driver.offer_indirect(table, &buffers)?
        } else {
            driver.offer(&buffers)?
        };
        let writable = buffers.iter().filter(|buffer| buffer.2).map(|&(addr, len, _)| (addr, len)).collect();
        self.outstanding[usize::from(queue)].insert(head, Outstanding { writable });
        Some(head)
    }

    /// Offers what the subject thinks up.
    pub fn offer_request(&mut self, queue: u16, choices: &mut Choices<'_>) -> Option<u16> {
        let request = self.subject.as_ref().unwrap().request(choices, queue);
        self.offer(queue, &request, choices)
    }

    /// Lets something happen on the host.
    pub fn host_acts(&mut self, choices: &mut Choices<'_>) {
        self.subject.as_mut().unwrap().host_acts(choices);
    }

    /// The driver kicks.
    pub fn kick(&mut self, queue: u16) {
        self.host.kick(queue);
    }

    /// The driver kicks every queue.
    pub fn kick_all(&mut self) {
        for queue in 0..self.queue_count() {
            self.host.kick(queue);
        }
    }

    /// Lets the device do what it can do now. Ends: a device that never comes to rest fails.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let before: Vec<u16> = self.queues.iter().map(MockQueue::used_idx).collect();
            let worked = match self.carrier {
                Carrier::Bare => self.host.turn(0),
                Carrier::Mmio => {
                    // What was to be done before is done when the device's thread answers; going on, it looks at
                    // every queue.
                    self.host.pause();
                    self.host.unpause();
                    self.host.turn(0) || self.queues.iter().map(MockQueue::used_idx).ne(before)
                }
            };
            if !worked {
                return;
            }
        }
        panic!("{} does not come to rest", self.name);
    }

    /// Waits until nothing happens for a while; a limit holds nothing up for as long. Ends as [`Self::settle`] does.
    pub fn rest(&mut self) {
        for _ in 0..100_000 {
            if !self.host.turn(50) {
                return;
            }
        }
        panic!("{} does not come to rest", self.name);
    }

    /// Waits until the device has found what it was told to be wrong: a limit may have kept it from looking.
    pub fn wait_for_fault(&mut self, what: &str) {
        let deadline = self.deadline();
        while !self.host.broken() {
            assert!(Instant::now() < deadline, "{what}: not found");
            self.host.turn(20);
        }
    }

    /// The next chain that the device gave back, as (head, what it wrote).
    pub fn take(&mut self, queue: u16) -> Option<(u16, Vec<u8>)> {
        let driver = &mut self.queues[usize::from(queue)];
        let (head, len) = driver.take_used()?;
        let chain = self.outstanding[usize::from(queue)].remove(&head);
        let chain = chain.unwrap_or_else(|| panic!("queue {queue}: chain {head} was not out"));
        let mut data = Vec::new();
        for (addr, span) in chain.writable {
            let now = (len as usize - data.len()).min(span as usize);
            data.extend_from_slice(&driver.read(addr, now));
        }
        assert_eq!(data.len(), len as usize, "queue {queue}: more written than there was room for");
        Some((head, data))
    }

    /// Takes everything that was given back.
    pub fn reap(&mut self) {
        for queue in 0..self.queue_count() {
            while self.take(queue).is_some() {}
        }
    }

    /// Chains that the device has.
    pub fn outstanding(&self, queue: u16) -> usize {
        self.outstanding[usize::from(queue)].len()
    }

    /// Offers a chain and waits for one to come back; returns what was written into that.
    pub fn ask(&mut self, queue: u16, readable: &[u8], writable: u32) -> Vec<u8> {
        self.ask_until(queue, readable, writable, self.deadline())
    }

    /// As [`Self::ask`] with a deadline.
    pub fn ask_until(&mut self, queue: u16, readable: &[u8], writable: u32, deadline: Instant) -> Vec<u8> {
        let request = Request { readable: readable.to_vec(), writable };
        self.offer(queue, &request, &mut Choices::seeded(1)).expect("free descriptors");
        self.kick(queue);
        loop {
            assert!(!self.host.broken(), "{}", self.host.fault());
            if let Some((_, data)) = self.take(queue) {
                return data;
            }
            assert!(Instant::now() < deadline, "no answer on queue {queue}");
            self.host.turn(20);
        }
    }

    /// Panics unless the device serves an honest driver after a reset.
    pub fn prove_alive(&mut self) {
        self.reset();
        self.prove_service();
    }

    /// Panics unless the device serves the driver that has just begun.
    pub fn prove_service(&mut self) {
        let mut subject = self.subject.take().unwrap();
        subject.probe(self);
        self.subject = Some(subject);
    }

    /// Panics unless a fault, if there is one, was announced once and stops everything.
    pub fn check_fault(&mut self, what: &str) {
        if self.carrier == Carrier::Bare {
            let told = self.notifier.take().iter().filter(|what| **what == Notification::NeedsReset).count();
            assert_eq!(told, usize::from(self.host.broken()), "{what}: reset asked for {told} times");
        }
        if self.host.broken() {
            let before: Vec<u16> = self.queues.iter().map(MockQueue::used_idx).collect();
            self.kick_all();
            self.settle();
            let after: Vec<u16> = self.queues.iter().map(MockQueue::used_idx).collect();
            assert_eq!(before, after, "{what}: a broken device went on");
        }
    }

    /// Fills memory that no device may change with a pattern. Before rings are laid out and buffers offered.
    pub fn paint(&mut self) {
        for (start, end) in self.quiet_areas() {
            self.queues[0].write(start, &vec![PATTERN; (end - start) as usize]);
        }
    }

    fn quiet_areas(&self) -> [(u64, u64); 3] {
        let rings = RING_STRIDE * (1 + u64::from(self.queue_count()));
        [(0, RING_STRIDE), (rings, WRITABLE), (WRITABLE_END, RAM as u64)]
    }

    /// Panics if memory has changed that no device may change, since this copy of it was made. A device to which
    /// the driver may give memory up makes pages of it zero.
    pub fn check_forbidden(&self, before: &[Vec<u8>], what: &str) {
        let given_up = self.subject.as_ref().unwrap().gives_memory_up();
        for (before, after) in before.iter().zip(self.forbidden()) {
            let mut pages = before.chunks(4096).zip(after.chunks(4096));
            let kept = pages
                .all(|(before, after)| before == after || given_up && after.iter().all(|byte| *byte == 0));
            assert!(kept, "{what}: memory changed");
        }
    }

    /// A copy of the memory that no device may change.
    pub fn forbidden(&self) -> Vec<Vec<u8>> {
        let mut areas: Vec<Vec<u8>> = self
            .quiet_areas()
            .into_iter()
            .map(|(start, end)| self.queues[0].read(start, (end - start) as usize))
            .collect();
        // Of the rings only the used ones are the device's.
        for queue in &self.queues {
            let layout = queue.layout();
            areas.push(queue.read(layout.desc_table, (layout.used_ring - layout.desc_table) as usize));
        }
        areas
    }

    /// A copy of all guest memory.
    pub fn memory(&self) -> Vec<u8> {
        self.queues[0].read(0, RAM)
    }
}

fn take(next: &mut u64, len: u64, area: std::ops::Range<u64>) -> u64 {
    if *next + len > area.end {
        *next = area.start;
    }
    let at = *next;
    *next += len;
    at
}

fn cut(buffers: &mut Vec<(u64, u32, bool)>, at: u64, len: u32, writable: bool, choices: &mut Choices<'_>) {
    let mut done = 0;
    while done < len {
        let left = len - done;
        let now = if choices.once_in(2) || buffers.len() >= 6 {
            left
        } else {
            1 + choices.below(u64::from(left)) as u32
        };
        buffers.push((at + u64::from(done), now, writable));
        done += now;
    }
}
