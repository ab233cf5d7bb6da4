//! The driver's side of the registers: honest by default, and able to write anything. For tests only.
//!
//! The numbers are taken from the specification once more, not from the shell's: a wrong one there must show.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strato_virtio::mock::MockQueue;
use strato_virtio::{GuestRamHandle, RingLayout, VIRTIO_F_EVENT_IDX};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::MmioDevice;

/// Offsets of registers (virtio 1.2, 4.2.2).
#[allow(missing_docs)]
pub mod at {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const SHM_SEL: u64 = 0xac;
    pub const SHM_LEN: u64 = 0xb0;
    pub const SHM_BASE: u64 = 0xb8;
    pub const QUEUE_RESET: u64 = 0xc0;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// Status bits (virtio 1.2, 2.1), as they add up on the way to a running device.
pub const ACKNOWLEDGED: u32 = 1;
/// And DRIVER.
pub const DRIVING: u32 = 3;
/// And FEATURES_OK.
pub const SETTLED: u32 = 11;
/// And DRIVER_OK.
pub const RUNNING: u32 = 15;
/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u32 = 64;

/// A driver of one device.
#[derive(Clone)]
pub struct MockDriver {
    /// The device.
    pub device: Arc<MmioDevice>,
}

#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
impl MockDriver {
    pub fn new(device: Arc<MmioDevice>) -> Self {
        Self { device }
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    /// Low and high half of a 64-bit register.
    pub fn write_pair(&self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    pub fn status(&self) -> u32 {
        self.read(at::STATUS)
    }

    pub fn set_status(&self, status: u32) {
        self.write(at::STATUS, status);
    }

    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.device.read(at::CONFIG + offset, &mut data);
        data
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let page = |page| {
            self.write(at::DEVICE_FEATURES_SEL, page);
            u64::from(self.read(at::DEVICE_FEATURES))
        };
        page(0) | page(1) << 32
    }

    /// Resets the device and settles these features; false if it does not take them.
    pub fn settle(&self, features: u64) -> bool {
        self.set_status(0);
        self.set_status(ACKNOWLEDGED);
        self.set_status(DRIVING);
        for (page, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(at::DRIVER_FEATURES_SEL, page);
            self.write(at::DRIVER_FEATURES, value);
        }
        self.set_status(SETTLED);
        self.status() == SETTLED
    }

    /// Tells the device where a queue lies, and that it is ready.
    pub fn set_up(&self, queue: u16, layout: RingLayout) {
        self.write(at::QUEUE_SEL, queue.into());
        self.write(at::QUEUE_NUM, layout.size.into());
        self.write_pair(at::QUEUE_DESC, layout.desc_table);
        self.write_pair(at::QUEUE_DRIVER, layout.avail_ring);
        self.write_pair(at::QUEUE_DEVICE, layout.used_ring);
        self.write(at::QUEUE_READY, 1);
    }

    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.device.doorbells().len()).unwrap()
    }

    /// Fresh rings for all queues in `ram` from `base` on, each of `size` descriptors at most.
    pub fn rings(&self, ram: &GuestRamHandle, base: u64, size: u16, features: u64) -> Vec<MockQueue> {
        let mut next = base;
        let ring = |queue| {
            self.write(at::QUEUE_SEL, queue);
            let most = u16::try_from(self.read(at::QUEUE_NUM_MAX)).unwrap();
            let (mut ring, end) = MockQueue::new(ram, next, size.min(most));
            next = end;
            if features & VIRTIO_F_EVENT_IDX != 0 {
                ring.use_event_idx();
            }
            ring
        };
        (0..u32::from(self.queue_count())).map(ring).collect()
    }

    /// The whole way from a reset to a running device.
    pub fn begin(&self, ram: &GuestRamHandle, features: u64) -> Vec<MockQueue> {
        assert!(self.settle(features), "features {features:#x} are refused");
        let queues = self.rings(ram, 0x1000, 64, features);
        self.run(&queues);
        queues
    }

    /// Sets the queues up and DRIVER_OK.
    pub fn run(&self, queues: &[MockQueue]) {
        for (queue, ring) in (0..).zip(queues) {
            self.set_up(queue, ring.layout());
        }
        self.set_status(RUNNING);
    }

    /// As the guest's write to QueueNotify where there is an ioeventfd.
    pub fn kick(&self, queue: u16) {
        self.device.doorbells()[usize::from(queue)].write(1).unwrap();
    }

    /// Waits for an interrupt and acknowledges it as Linux does; returns InterruptStatus.
    pub fn interrupted(&self, patience: Duration) -> Option<u32> {
        if !readable(self.device.interrupt(), patience).unwrap() {
            return None;
        }
        let _ = self.device.interrupt().read();
        let status = self.read(at::INTERRUPT_STATUS);
        self.write(at::INTERRUPT_ACK, status);
        Some(status)
    }

    /// Takes interrupts until `done` has something to give.
    pub fn wait<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(value) = done() {
                return value;
            }
            assert!(Instant::now() < deadline, "{}: no {what}", self.device.name());
            self.interrupted(Duration::from_secs(1));
        }
    }
}

fn readable(interrupt: &EventFd, patience: Duration) -> io::Result<bool> {
    let epoll = Epoll::new()?;
    let wanted = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, interrupt.as_raw_fd(), wanted)?;
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // Interrupted is nothing heard.
    Ok(epoll.wait(patience, &mut [wanted]).is_ok_and(|count| count == 1))
}
