//! The block device against the mock driver and real files, with both engines; and with an engine that ends
//! operations when and how the test says.
#![allow(unsafe_code, reason = "tests")]

mod direct;
mod engines;
mod flush;
mod gate;
mod lies;
mod life;
mod limits;
mod model;
mod requests;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strato_virtio::mock::{MockNotifier, MockQueue, guest_ram};
use strato_virtio::{DeviceHost, GuestRamHandle, RING_FEATURES, RingStart, VIRTIO_F_VERSION_1};

use super::backend::Disk;
use super::device::Settings;
use super::*;
use crate::limits::Limits;

const ENGINES: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Pool];
const SECTORS: u64 = 64;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const F_FLUSH: u64 = 1 << 9;
const F_CONFIG_WCE: u64 = 1 << 11;

const PATIENCE_MS: i32 = 10_000;
const RING_SIZE: u16 = 64;
const RING_AREA: u64 = 0x2000;
const HEADERS: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;
/// Room for the data of one request.
const PLACE: u64 = 0x4000;
const RAM: usize = 4 << 20;

/// Guest addresses of request number `place`.
fn header(place: u64) -> u64 {
    HEADERS + place * 64
}

fn status(place: u64) -> u64 {
    header(place) + 32
}

fn data(place: u64) -> u64 {
    DATA + place * PLACE
}

struct Machine {
    host: DeviceHost,
    drivers: Vec<MockQueue>,
    ram: GuestRamHandle,
    notifier: MockNotifier,
    file: File,
    metrics: Arc<BlockMetrics>,
    control: BlockControl,
}

/// A file in memory whose sector n is full of n + 1.
fn memory_file(sectors: u64) -> File {
    // SAFETY: the name is a literal with a terminator; the descriptor returned is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC)) };
    fill(&file, sectors);
    file
}

/// The same on a file system that does direct I/O (a temporary folder without one fails these tests).
fn disk_file(sectors: u64) -> File {
    let folder = std::env::temp_dir();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)
        .unwrap();
    fill(&file, sectors);
    file.sync_all().unwrap();
    file
}

fn fill(file: &File, sectors: u64) {
    let content: Vec<u8> = (0..sectors * 512).map(|n| ((n / 512) as u8).wrapping_add(1)).collect();
    file.write_all_at(&content, 0).unwrap();
}

fn config(file: &File, engine: EngineChoice) -> BlockConfig {
    BlockConfig { serial: "disk-1".into(), engine, ..BlockConfig::new(reopened(file)) }
}

/// Another open file description, so that the test's own is not made direct.
fn reopened(file: &File) -> File {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn machine(engine: EngineChoice) -> Machine {
    let file = memory_file(SECTORS);
    let config = config(&file, engine);
    start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1 | F_FLUSH)
}

fn start(block: Block, file: File, features: u64) -> Machine {
    let (metrics, control) = (block.metrics(), block.control());
    let ram = guest_ram(RAM);
    let notifier = MockNotifier::default();
    let mut host = DeviceHost::new(Box::new(block), Box::new(notifier.clone())).unwrap();
    host.set_memory(ram.clone()).unwrap();
    let mut m = Machine { host, drivers: Vec::new(), ram, notifier, file, metrics, control };
    m.start_driver(features);
    m
}

impl Machine {
    /// A new driver with empty rings.
    fn start_driver(&mut self, features: u64) {
        assert!(self.host.set_features(features));
        self.drivers.clear();
        for queue in 0..self.host.info().queue_sizes.len() as u16 {
            let base = 0x1000 + u64::from(queue) * RING_AREA;
            let (mut driver, _) = MockQueue::new(&self.ram, base, RING_SIZE);
            if features & RING_FEATURES & strato_virtio::VIRTIO_F_EVENT_IDX != 0 {
                driver.use_event_idx();
            }
            self.drivers.push(driver);
            self.start_ring(queue, 0);
        }
    }

    fn start_ring(&mut self, queue: u16, next_avail: u16) {
        let layout = self.drivers[usize::from(queue)].layout();
        self.host.start_ring(RingStart { queue, layout, next_avail, kick: None }).unwrap();
    }

    /// Puts a request into queue `queue` at place `place` without a kick; returns its head.
    fn offer(
        &mut self,
        queue: u16,
        place: u64,
        operation: u32,
        sector: u64,
        data: &[(u64, u32, bool)],
    ) -> u16 {
        let driver = &mut self.drivers[usize::from(queue)];
        let mut raw = operation.to_le_bytes().to_vec();
        raw.extend([0; 4]);
        raw.extend(sector.to_le_bytes());
        driver.write(header(place), &raw);
        driver.write(status(place), &[255]);
        let mut buffers = vec![(header(place), 16, false)];
        buffers.extend(data);
        buffers.push((status(place), 1, true));
        driver.offer(&buffers).unwrap()
    }

    /// Turns the crank until queue `queue` has an answer.
    fn wait(&mut self, queue: u16) -> (u16, u32) {
        let begun = Instant::now();
        loop {
            if let Some(used) = self.drivers[usize::from(queue)].take_used() {
                return used;
            }
            assert!(begun.elapsed() < Duration::from_millis(PATIENCE_MS as u64), "no answer");
            self.host.turn(PATIENCE_MS).unwrap();
        }
    }

    /// One request; returns its status (255: none was written) and the used length.
    fn ask(&mut self, operation: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        let head = self.offer(0, 0, operation, sector, data);
        self.host.kick(0);
        let (used, len) = self.wait(0);
        assert_eq!(used, head);
        (self.status(0), len)
    }

    fn status(&self, place: u64) -> u8 {
        self.drivers[0].read(status(place), 1)[0]
    }

    fn range(&mut self, operation: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut raw = sector.to_le_bytes().to_vec();
        raw.extend(sectors.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        self.drivers[0].write(DATA, &raw);
        self.ask(operation, 0, &[(DATA, 16, false)]).0
    }

    fn on_disk(&self, sector: u64) -> [u8; 512] {
        let mut data = [0; 512];
        self.file.read_exact_at(&mut data, sector * 512).unwrap();
        data
    }

    fn metric(&self, name: &str) -> u64 {
        self.metrics.snapshot().into_iter().find(|(known, _)| *known == name).unwrap().1
    }
}
