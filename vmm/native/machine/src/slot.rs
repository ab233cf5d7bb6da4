//! A place on the bus for one virtio device, which comes and goes while the guest runs.
//!
//! The place itself is there as long as the machine. An empty one answers as virtio 1.2 (4.2.2) says of a device that
//! does not exist: the right magic, and device ID 0.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use strato_plumbing::{Failure, Result};
use strato_virtio::transport::status;
use strato_virtio_mmio::MmioDevice;

use crate::bus::BusDevice;
use crate::vm::Vm;

/// Registers of a slot take so many addresses.
pub const SLOT_LEN: u64 = 0x1000;

/// "virt", and the version of the registers (virtio 1.2, 4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;

/// Offsets of registers (virtio 1.2, 4.2.2).
const MAGIC_VALUE: u64 = 0x000;
const VERSION_REGISTER: u64 = 0x004;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;

/// What the plan says of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotConfig {
    /// Its number.
    pub index: u32,
    /// First address of its registers.
    pub guest_addr: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

pub(crate) struct Slot {
    config: SlotConfig,
    // vCPUs read it side by side; who plugs waits for those that are in the device.
    device: RwLock<Option<Arc<MmioDevice>>>,
}

impl Slot {
    pub(crate) fn new(config: SlotConfig) -> Self {
        Self { config, device: RwLock::new(None) }
    }

    pub(crate) fn config(&self) -> &SlotConfig {
        &self.config
    }

    fn content(&self) -> RwLockReadGuard<'_, Option<Arc<MmioDevice>>> {
        self.device.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device that is in the slot.
    pub(crate) fn device(&self) -> Option<Arc<MmioDevice>> {
        self.content().clone()
    }

    /// Whether a driver of the guest has taken the device up. That the guest knows of the device is none: Linux
    /// says so again when its driver has let go (drivers/virtio/virtio.c, virtio_dev_remove).
    pub(crate) fn is_driven(&self) -> bool {
        let mut bytes = [0; 4];
        if let Some(device) = self.content().as_ref() {
            device.read(STATUS, &mut bytes);
        }
        u32::from_le_bytes(bytes) & u32::from(status::DRIVER) != 0
    }

    /// Connects a device, which has its memory already, and lets the guest see it.
    ///
    /// # Errors
    /// What KVM says; nothing is connected then.
    pub(crate) fn fill(&self, vm: &Vm, device: Arc<MmioDevice>) -> Result<()> {
        let outcome = self.connect(vm, &device);
        if outcome.is_err() {
            self.disconnect(vm, &device);
            return outcome;
        }
        *self.device.write().unwrap_or_else(PoisonError::into_inner) = Some(device);
        Ok(())
    }

    /// Takes the device away, which the guest sees no more afterwards.
    pub(crate) fn empty(&self, vm: &Vm) -> Option<Arc<MmioDevice>> {
        let device = self.abandon()?;
        self.disconnect(vm, &device);
        Some(device)
    }

    /// As [`Self::empty`], of a VM that goes and takes all connections with it.
    pub(crate) fn abandon(&self) -> Option<Arc<MmioDevice>> {
        self.device.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn doorbell(&self) -> u64 {
        self.config.guest_addr + QUEUE_NOTIFY
    }

    fn connect(&self, vm: &Vm, device: &MmioDevice) -> Result<()> {
        vm.connect_interrupt(device.interrupt(), self.config.gsi)?;
        for (queue, doorbell) in (0..).zip(device.doorbells()) {
            vm.connect_doorbell(doorbell, self.doorbell(), queue)?;
        }
        Ok(())
    }

    /// Fails only for what was never connected.
    fn disconnect(&self, vm: &Vm, device: &MmioDevice) {
        for (queue, doorbell) in (0..).zip(device.doorbells()) {
            let _ = vm.disconnect_doorbell(doorbell, self.doorbell(), queue);
        }
        let _ = vm.disconnect_interrupt(device.interrupt(), self.config.gsi);
    }

    pub(crate) fn missing(index: u32) -> Failure {
        Failure::new(format!("Machine has no slot {index}"), libc::ENOENT)
    }
}

impl BusDevice for Slot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(device) = self.content().as_ref() {
            return device.read(offset, data);
        }
        let value: u32 = match offset {
            MAGIC_VALUE => MAGIC,
            VERSION_REGISTER => VERSION,
            _ => 0,
        };
        let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(device) = self.content().as_ref() {
            device.write(offset, data);
        }
    }
}
