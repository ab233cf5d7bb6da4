//! An engine that ends operations when the test says so, in the order and with the outcome that it says.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;

use strato_virtio::Notification;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::engine::{Done, Engine, Job, Work};
use super::*;

#[derive(Default)]
struct Held {
    jobs: Vec<Job>,
    done: Vec<Done>,
    flushes: usize,
}

pub(super) struct Gate {
    held: Arc<Mutex<Held>>,
    ready: EventFd,
}

#[derive(Clone)]
pub(super) struct GateKeeper {
    held: Arc<Mutex<Held>>,
    ready: Arc<EventFd>,
}

impl Gate {
    pub(super) fn new() -> (Self, GateKeeper) {
        let held = Arc::new(Mutex::new(Held::default()));
        let ready = EventFd::new(EFD_NONBLOCK).unwrap();
        let keeper = GateKeeper { held: Arc::clone(&held), ready: Arc::new(ready.try_clone().unwrap()) };
        (Self { held, ready }, keeper)
    }
}

impl GateKeeper {
    pub(super) fn waiting(&self) -> usize {
        self.held.lock().unwrap().jobs.len()
    }

    /// Kinds of the operations that wait, in the order of their arrival.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let kind = |job: &Job| match &job.work {
            Work::Read { .. } => "read",
            Work::Write { durable: false, .. } => "write",
            Work::Write { durable: true, .. } => "durable write",
            Work::Flush => "flush",
            Work::Allocate { .. } => "allocate",
        };
        self.held.lock().unwrap().jobs.iter().map(kind).collect()
    }

    /// Bytes left to operation `index` of those that wait, and where on the disk they begin.
    pub(super) fn left(&self, index: usize) -> (usize, u64) {
        match &self.held.lock().unwrap().jobs[index].work {
            Work::Read { offset, buffers } | Work::Write { offset, buffers, .. } => (buffers.len(), *offset),
            _ => (0, 0),
        }
    }

    pub(super) fn flushes(&self) -> usize {
        self.held.lock().unwrap().flushes
    }

    /// Ends operation `index` of those that wait with `result`; nothing is moved.
    pub(super) fn end(&self, index: usize, result: io::Result<usize>) {
        let mut held = self.held.lock().unwrap();
        let job = held.jobs.remove(index);
        held.done.push(Done { job, result });
        self.ready.write(1).unwrap();
    }

    /// Ends operation `index` as if all of it were done.
    pub(super) fn succeed(&self, index: usize) {
        let len = match &self.held.lock().unwrap().jobs[index].work {
            Work::Read { buffers, .. } | Work::Write { buffers, .. } => buffers.len(),
            _ => 0,
        };
        self.end(index, Ok(len));
    }
}

impl Engine for Gate {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Pool
    }

    fn ready_fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }

    fn submit(&mut self, job: Job) {
        self.held.lock().unwrap().jobs.push(job);
    }

    fn flush(&mut self) -> bool {
        self.held.lock().unwrap().flushes += 1;
        true
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let _ = self.ready.read();
        done.append(&mut self.held.lock().unwrap().done);
    }

    fn wait(&mut self) {
        // Nobody will open the gate while the device waits: everything comes to its end.
        let mut held = self.held.lock().unwrap();
        while let Some(job) = held.jobs.pop() {
            held.done.push(Done { job, result: Err(io::Error::from_raw_os_error(libc::EIO)) });
        }
    }

    fn cancel(&mut self) {
        self.wait();
    }
}

pub(super) fn gated(num_queues: u16, limits: Limits, features: u64) -> (Machine, GateKeeper) {
    let file = memory_file(SECTORS);
    let (gate, keeper) = Gate::new();
    let disk = Disk::new(file.try_clone().unwrap(), CacheMode::Writeback).unwrap();
    let settings = Settings { readonly: false, serial: String::new(), num_queues, limits };
    let block = Block::assemble(settings, disk, Box::new(gate)).unwrap();
    (start(block, file, features), keeper)
}

pub(super) fn plain() -> (Machine, GateKeeper) {
    gated(1, Limits::default(), VIRTIO_F_VERSION_1 | F_FLUSH)
}

#[test]
fn requests_are_answered_in_the_order_in_which_they_end() {
    let (mut m, gate) = plain();
    let heads: Vec<u16> =
        (0..4).map(|place| m.offer(0, place, IN, place, &[(data(place), 512, true)])).collect();
    m.host.kick(0);
    assert_eq!(gate.waiting(), 4);
    for index in [2, 0, 1, 0] {
        gate.succeed(index);
        m.host.turn(0).unwrap();
    }
    let order: Vec<u16> = std::iter::from_fn(|| m.drivers[0].take_used()).map(|(head, _)| head).collect();
    assert_eq!(order, [heads[2], heads[0], heads[3], heads[1]]);
}

#[test]
fn slow_request_holds_up_no_other_one() {
    let (mut m, gate) = plain();
    let slow = m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    for place in 1..20 {
        let head = m.offer(0, place, OUT, 1, &[(data(place), 512, false)]);
        m.host.kick(0);
        gate.succeed(1);
        assert_eq!(m.wait(0).0, head);
    }
    gate.succeed(0);
    assert_eq!(m.wait(0).0, slow);
}

/// The class of buffers that are used again from their beginning after a part of them was done.
#[test]
fn short_transfers_go_on_where_they_ended() {
    let (mut m, gate) = plain();
    m.offer(0, 0, IN, 2, &[(data(0), 1000, true), (data(0) + 2000, 1048, true)]);
    m.host.kick(0);
    let mut done = 0;
    for count in [900, 100, 1047, 1] {
        assert_eq!(gate.left(0), (2048 - done, 1024 + done as u64));
        gate.end(0, Ok(count));
        m.host.turn(0).unwrap();
        done += count;
    }
    assert_eq!((gate.waiting(), m.wait(0).1, m.status(0)), (0, 2049, 0));
}

#[test]
fn errors_of_the_disk_reach_the_guest_as_errors() {
    let (mut m, gate) = plain();
    for (operation, writable, error) in
        [(IN, true, libc::EIO), (OUT, false, libc::ENOSPC), (OUT, false, libc::EIO), (IN, true, libc::EFAULT)]
    {
        m.offer(0, 0, operation, 0, &[(data(0), 1024, writable)]);
        m.host.kick(0);
        gate.end(0, Err(io::Error::from_raw_os_error(error)));
        m.wait(0);
        assert_eq!(m.status(0), 1);
    }
    m.offer(0, 0, OUT, 0, &[(data(0), 1024, false)]);
    m.host.kick(0);
    gate.end(0, Ok(0));
    m.wait(0);
    assert_eq!((m.status(0), m.metric("errors")), (1, 5));
}

#[test]
fn interrupted_operations_are_repeated_but_not_for_ever() {
    let (mut m, gate) = plain();
    m.offer(0, 0, IN, 0, &[(data(0), 512, true)]);
    m.host.kick(0);
    gate.end(0, Err(io::Error::from_raw_os_error(libc::EAGAIN)));
    m.host.turn(0).unwrap();
    gate.succeed(0);
    m.wait(0);
    assert_eq!(m.status(0), 0);
    m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    let mut tries = 0;
    while gate.waiting() > 0 {
        gate.end(0, Err(io::Error::from_raw_os_error(libc::EINTR)));
        m.host.turn(0).unwrap();
        tries += 1;
    }
    m.wait(0);
    assert_eq!((m.status(0), tries), (1, 17));
}

#[test]
fn batch_is_begun_in_one_go() {
    let (mut m, gate) = plain();
    let before = gate.flushes();
    for place in 0..20 {
        m.offer(0, place, IN, place, &[(data(place), 512, true)]);
    }
    m.host.kick(0);
    // One for the batch, one for the look at the empty ring.
    assert_eq!((gate.waiting(), gate.flushes() - before), (20, 2));
}

#[test]
fn writes_are_durable_when_the_driver_knows_no_flush_or_asks_for_it() {
    let write = |m: &mut Machine, gate: &GateKeeper| {
        m.offer(0, 0, OUT, 0, &[(data(0), 512, false)]);
        m.host.kick(0);
        let kinds = gate.kinds();
        gate.succeed(0);
        m.wait(0);
        kinds[0]
    };
    let (mut m, gate) = gated(1, Limits::default(), VIRTIO_F_VERSION_1);
    assert_eq!(write(&mut m, &gate), "durable write");
    let raw = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &1u32.to_le_bytes()].concat();
    m.drivers[0].write(data(0), &raw);
    m.offer(0, 0, WRITE_ZEROES, 0, &[(data(0), 16, false)]);
    m.host.kick(0);
    for kind in ["allocate", "flush"] {
        assert_eq!(gate.kinds(), [kind]);
        gate.succeed(0);
        m.host.turn(0).unwrap();
    }
    assert_eq!((m.wait(0).1, m.status(0)), (1, 0));
    let (mut m, gate) = gated(1, Limits::default(), VIRTIO_F_VERSION_1 | F_FLUSH | F_CONFIG_WCE);
    assert_eq!(m.host.config().get(32, 1), Some(&[1][..]));
    assert_eq!(write(&mut m, &gate), "write");
    assert!(m.host.write_config(32, &[0]));
    assert_eq!(write(&mut m, &gate), "durable write");
    assert_eq!(m.host.config().get(32, 1), Some(&[0][..]));
    let saved = m.host.save();
    m.host.reset();
    assert_eq!(m.host.config().get(32, 1), Some(&[1][..]));
    m.host.restore(&saved).unwrap();
    assert_eq!(m.host.config().get(32, 1), Some(&[0][..]));
}

#[test]
fn requests_beyond_the_places_wait_in_their_rings_and_none_is_lost() {
    let (mut m, gate) = gated(8, Limits::default(), VIRTIO_F_VERSION_1 | (1 << 12));
    // 8 rings of 32 flushes (two descriptors each): exactly the places; then one more in each.
    let mut offered = 0;
    for queue in 0..8 {
        while m.drivers[usize::from(queue)].free_descriptors() >= 2 {
            m.offer(queue, 0, FLUSH, 0, &[]);
            offered += 1;
        }
        m.host.kick(queue);
    }
    assert_eq!((offered, gate.waiting()), (256, 256));
    gate.succeed(0);
    m.host.turn(0).unwrap();
    m.wait(0);
    m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    m.drivers[7].take_used();
    assert_eq!(gate.waiting(), 256);
    m.notifier.take();
    while gate.waiting() > 0 {
        gate.succeed(0);
    }
    m.host.turn(0).unwrap();
    let told = m.notifier.take();
    assert_eq!(told.len(), 8, "one notification for each queue: {told:?}");
    assert!(told.contains(&Notification::Queue(7)));
}
