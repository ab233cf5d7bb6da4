//! The balloon device against the mock driver.

mod behaviour;
mod lies;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strato_virtio::mock::{MockNotifier, MockQueue, guest_ram};
use strato_virtio::{DeviceHost, GuestRam, GuestRamHandle, RingStart, VIRTIO_F_VERSION_1};

use super::*;

pub(super) const STATS_VQ: u64 = 1 << 1;
pub(super) const OOM: u64 = 1 << 2;
pub(super) const REPORTING: u64 = 1 << 5;

pub(super) const PAGE: u64 = 4096;
pub(super) const RAM: u64 = 4 << 20;
/// What the guest writes lists into.
pub(super) const LISTS: u64 = 0x8_0000;
/// Memory that is filled, from here to the end.
pub(super) const FILLED: u64 = 1 << 20;

/// Ranges that went back, and whether the host takes more.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) ranges: Mutex<Vec<(u64, u64)>>,
    pub(super) fails: AtomicBool,
}

#[derive(Clone)]
struct Watched(Arc<Taken>);

impl Discard for Watched {
    fn discard(&mut self, ram: &GuestRam, guest_addr: u64, len: u64) -> io::Result<u64> {
        if self.0.fails.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let outcome = HostDiscard.discard(ram, guest_addr, len);
        if outcome.is_ok() {
            self.0.ranges.lock().unwrap().push((guest_addr, len));
        }
        outcome
    }
}

pub(super) struct Machine {
    pub(super) host: DeviceHost,
    pub(super) ram: GuestRamHandle,
    pub(super) queues: Vec<MockQueue>,
    pub(super) notifier: MockNotifier,
    pub(super) metrics: Arc<BalloonMetrics>,
    pub(super) control: BalloonControl,
    pub(super) taken: Arc<Taken>,
}

pub(super) fn config(stats_interval: Option<Duration>) -> BalloonConfig {
    BalloonConfig { deflate_on_oom: true, reporting: true, stats_interval }
}

/// A balloon whose driver settles `features`; its memory is filled and its queues run.
pub(super) fn machine(config: BalloonConfig, features: u64) -> Machine {
    let taken = Arc::new(Taken::default());
    let balloon = Balloon::with_host(config, Box::new(Watched(Arc::clone(&taken)))).unwrap();
    let (metrics, control) = (balloon.metrics(), balloon.control());
    let notifier = MockNotifier::default();
    let host = DeviceHost::new(Box::new(balloon), Box::new(notifier.clone())).unwrap();
    let ram = guest_ram(RAM as usize);
    let mut machine = Machine { host, ram, queues: Vec::new(), notifier, metrics, control, taken };
    machine.host.set_memory(Arc::clone(&machine.ram)).unwrap();
    machine.begin(features);
    machine
}

impl Machine {
    /// A driver begins.
    pub(super) fn begin(&mut self, features: u64) {
        assert!(self.host.set_features(VIRTIO_F_VERSION_1 | features));
        let mut base = 0x1000;
        self.queues.clear();
        for queue in 0..u16::try_from(self.host.info().queue_sizes.len()).unwrap() {
            let (driver, end) = MockQueue::new(&self.ram, base, 64);
            base = end;
            let layout = driver.layout();
            self.queues.push(driver);
            self.host.start_ring(RingStart { queue, layout, next_avail: 0, kick: None }).unwrap();
        }
        self.fill();
    }

    pub(super) fn fill(&mut self) {
        self.queues[0].write(FILLED, &vec![0x5a; (RAM - FILLED) as usize]);
    }

    pub(super) fn give(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) {
        self.queues[queue].offer(buffers).unwrap();
        self.host.kick(queue as u16);
    }

    /// Gives `data` to the device in one buffer.
    pub(super) fn send(&mut self, queue: usize, data: &[u8]) {
        self.queues[queue].write(LISTS, data);
        self.give(queue, &[(LISTS, data.len() as u32, false)]);
    }

    pub(super) fn send_pages(&mut self, queue: usize, pages: &[u32]) {
        let raw: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.send(queue, &raw);
    }

    pub(super) fn send_stats(&mut self, stats: &[(u16, u64)]) {
        let each = |(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        self.send(2, &stats.iter().flat_map(each).collect::<Vec<_>>());
    }

    /// Everything that waits, until nothing does.
    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.host.turn(0).unwrap() {
                return;
            }
        }
        panic!("The device does not come to rest");
    }

    /// Pages of the filled memory that hold zeroes only, by number.
    pub(super) fn zero_pages(&self) -> Vec<u32> {
        let zero = |page: &u64| self.queues[0].read(page * PAGE, PAGE as usize).iter().all(|byte| *byte == 0);
        (FILLED / PAGE..RAM / PAGE).filter(zero).map(|page| page as u32).collect()
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        self.metrics.snapshot().into_iter().find(|counter| counter.0 == name).unwrap().1
    }

    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.taken.ranges.lock().unwrap())
    }
}
