//! A device of no kind, whose every wish the tests know, and an observer that remembers.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, dead_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strato_virtio::mock::{MockQueue, guest_ram};
use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, GuestRamHandle, Interest, Observer,
    Progress, RING_FEATURES, Ready, SaveObstacle, WorkerEnd,
};
use strato_virtio_mmio::MmioDevice;
use strato_virtio_mmio::mock::MockDriver;
use vmm_sys_util::eventfd::EventFd;

pub const FEATURE: u64 = 1 << 3;
pub const CONFIG_LEN: u32 = 13;
const KIND: u32 = kind(*b"TEST");

/// What a test sees and does from outside.
#[derive(Debug)]
pub struct Handle {
    pub config: Mutex<Vec<u8>>,
    /// A write is an announced change of the configuration.
    pub change: EventFd,
    /// How often the shell has asked for the configuration.
    pub asked: AtomicU64,
    pub served: AtomicU64,
    pub resets: AtomicU64,
    pub panic_at_reset: AtomicBool,
    pub panic_at_kick: AtomicBool,
    pub unsaveable: AtomicBool,
}

impl Handle {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            config: Mutex::new((0..CONFIG_LEN as u8).collect()),
            change: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            asked: AtomicU64::new(0),
            served: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            panic_at_reset: AtomicBool::new(false),
            panic_at_kick: AtomicBool::new(false),
            unsaveable: AtomicBool::new(false),
        })
    }

    /// The host changes the configuration.
    pub fn reconfigure(&self, byte: usize, value: u8) {
        self.config.lock().unwrap()[byte] = value;
        self.change.write(1).unwrap();
    }
}

/// Gives every chain back at once with zeros written into it.
struct TestCore {
    info: DeviceInfo,
    handle: Arc<Handle>,
    chain: Chain,
}

impl DeviceCore for TestCore {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        io.events.add(self.handle.change.as_raw_fd(), 0, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        self.handle.asked.fetch_add(1, Ordering::Relaxed);
        ConfigSpace::new(self.handle.config.lock().unwrap().clone())
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let offset = offset as usize;
        self.handle.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        assert!(!self.handle.panic_at_kick.load(Ordering::Relaxed), "On purpose");
        let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
        while ring.pop(&mut self.chain)? {
            let len = self.chain.writable_len();
            let zeros = vec![0; len as usize];
            ring.write(&self.chain, 0, &zeros).map_err(|error| ring.fault(error))?;
            ring.complete(self.chain.head(), len)?;
            self.handle.served.fetch_add(1, Ordering::Relaxed);
        }
        ring.notify()?;
        Ok(Progress::Idle)
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        _token: u64,
        _ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        let _ = self.handle.change.read();
        io.notify_config();
        Ok(Progress::Idle)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        assert!(!self.handle.panic_at_reset.load(Ordering::Relaxed), "On purpose");
        self.handle.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn save_obstacle(&self) -> Option<SaveObstacle> {
        self.handle.unsaveable.load(Ordering::Relaxed).then_some(SaveObstacle::MountedShare)
    }

    fn save(&self) -> Vec<u8> {
        RecordWriter::new(KIND, 1).bytes(&self.handle.config.lock().unwrap()).finish()
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let mut reader = RecordReader::open(record, KIND, 1)?;
        let config = reader.bytes()?.to_vec();
        reader.finish()?;
        if config.len() != CONFIG_LEN as usize {
            return Err(RecordError::Value("configuration"));
        }
        *self.handle.config.lock().unwrap() = config;
        Ok(())
    }
}

/// What the host has heard.
#[derive(Debug, Default)]
pub struct Heard(pub Mutex<Vec<String>>);

impl Heard {
    fn push(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Waits until something like this was heard.
    pub fn wait_for(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.0.lock().unwrap().iter().any(|heard| heard.contains(what)) {
            assert!(Instant::now() < deadline, "never heard {what}");
            std::thread::yield_now();
        }
    }
}

impl Observer for Heard {
    fn faulted(&self, fault: &DeviceFault) {
        self.push(format!("{fault}: {}", fault.error));
    }

    fn backend_failed(&self, error: &io::Error) {
        self.push(error.to_string());
    }

    fn config_changed(&self) {
        self.push("configuration");
    }

    fn ended(&self, end: WorkerEnd) {
        self.push(format!("{end:?}"));
    }
}

/// A device with a driver and two queues, in memory of a megabyte.
pub struct Bench {
    pub driver: MockDriver,
    pub device: Arc<MmioDevice>,
    pub handle: Arc<Handle>,
    pub heard: Arc<Heard>,
    pub ram: GuestRamHandle,
}

pub fn bench() -> Bench {
    let handle = Handle::new();
    let info = DeviceInfo {
        device_type: 42,
        name: "test",
        features: RING_FEATURES | FEATURE,
        queue_sizes: vec![64, 8],
        config_len: CONFIG_LEN,
    };
    let core = TestCore { info, handle: Arc::clone(&handle), chain: Chain::new() };
    let heard = Arc::new(Heard::default());
    let observer: Arc<dyn Observer> = Arc::<Heard>::clone(&heard);
    let device = Arc::new(MmioDevice::new("test", Box::new(core), observer).unwrap());
    let ram = guest_ram(1 << 20);
    device.set_memory(Arc::clone(&ram)).unwrap();
    Bench { driver: MockDriver::new(Arc::clone(&device)), device, handle, heard, ram }
}

impl Bench {
    /// Puts one buffer of 16 bytes into a queue and waits for it.
    pub fn prove_service(&self, queue: u16, ring: &mut MockQueue) {
        ring.offer(&[(0x8_0000, 16, true)]).unwrap();
        self.driver.kick(queue);
        assert_eq!(self.driver.wait("answer", || ring.take_used()).1, 16);
    }

    /// Number of refusals that `work` brings about.
    pub fn refusals(&self, work: impl FnOnce()) -> u64 {
        let before = self.device.refusals();
        work();
        self.device.refusals() - before
    }
}
