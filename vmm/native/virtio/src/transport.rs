//! The driver's side of a device's life, whatever the transport: status order, feature negotiation, queue
//! set-up and the windows in which each may be written. virtio-mmio and virtio-pci decode registers and ask
//! here; there is no second copy of these rules.
//!
//! A write outside its window changes nothing and is reported as [`Refused`]; the transport counts it.

mod state;

use std::fmt;

use crate::core::DeviceInfo;
use crate::features::negotiated;
use crate::ring::RingLayout;

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready; the device runs.
    pub const DRIVER_OK: u8 = 4;
    /// Features are settled.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on (set by the device only).
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

use status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

/// A write that came at the wrong time or with an impossible value, and changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Status bits out of order, or cleared one by one.
    Status,
    /// Features may be written only between DRIVER and FEATURES_OK.
    Features,
    /// Queues may be set up only between FEATURES_OK and DRIVER_OK, and not while they are ready.
    Queue,
    /// The selected queue does not exist.
    NoSuchQueue,
    /// The queue size is zero, no power of two, or above the device's maximum.
    QueueSize,
    /// No such register, or one that cannot be written.
    Register,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "Status write out of order",
            Self::Features => "Feature write outside its window",
            Self::Queue => "Queue write outside its window",
            Self::NoSuchQueue => "Selected queue does not exist",
            Self::QueueSize => "Impossible queue size",
            Self::Register => "No register that can be written",
        })
    }
}

impl std::error::Error for Refused {}

/// What the transport has to do after an accepted status write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Reset the device; status reads 0 when that is done.
    Reset,
    /// Tell the core these features.
    Features(u64),
    /// Start these queues, each at available index 0. If that fails, call [`Transport::needs_reset`].
    Activate(Vec<(u16, RingLayout)>),
}

/// Which ring address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// Descriptor table.
    Desc,
    /// Available ring (driver area).
    Avail,
    /// Used ring (device area).
    Used,
}

#[derive(Clone, Copy, Debug)]
struct QueueSetup {
    max_size: u16,
    layout: RingLayout,
    ready: bool,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self { max_size, layout: RingLayout { size: max_size, ..RingLayout::default() }, ready: false }
    }
}

/// The registers that every transport has in common.
#[derive(Debug)]
pub struct Transport {
    device_features: u64,
    driver_features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    status: u8,
    selected: u32,
    queues: Vec<QueueSetup>,
}

impl Transport {
    /// The registers of a device at power-on.
    pub fn new(info: &DeviceInfo) -> Self {
        Self {
            device_features: info.features,
            driver_features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            status: 0,
            selected: 0,
            queues: info.queue_sizes.iter().map(|&size| QueueSetup::new(size)).collect(),
        }
    }

    /// The status register.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether the device runs.
    pub fn active(&self) -> bool {
        self.status & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Whether the driver has set DRIVER_OK, whatever has become of the device since.
    pub fn started(&self) -> bool {
        self.has(DRIVER_OK)
    }

    fn has(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    /// The driver writes the status register.
    ///
    /// # Errors
    /// [`Refused::Status`] for bits cleared one by one, set by the wrong side or out of order, and for
    /// anything but 0 once the device needs a reset. Features that cannot be accepted are no error: the bit
    /// FEATURES_OK just stays clear (virtio 1.2, 2.2.2).
    pub fn write_status(&mut self, value: u8) -> Result<Effect, Refused> {
        if value == 0 {
            self.reset();
            return Ok(Effect::Reset);
        }
        let added = value & !self.status;
        if self.status & !value & !DEVICE_NEEDS_RESET != 0 || added & DEVICE_NEEDS_RESET != 0 {
            return Err(Refused::Status);
        }
        if added & FAILED != 0 {
            self.status |= FAILED;
            return Ok(Effect::None);
        }
        if self.status & (DEVICE_NEEDS_RESET | FAILED) != 0 {
            return Err(Refused::Status);
        }
        if added.count_ones() > 1 && added != ACKNOWLEDGE | DRIVER {
            return Err(Refused::Status);
        }
        match added {
            0 => Ok(Effect::None),
            ACKNOWLEDGE => self.set(ACKNOWLEDGE),
            bits if bits == ACKNOWLEDGE | DRIVER => self.set(bits),
            DRIVER if self.has(ACKNOWLEDGE) => self.set(DRIVER),
            FEATURES_OK if self.has(DRIVER) => {
                if !negotiated(self.device_features, self.driver_features) {
                    return Ok(Effect::None);
                }
                self.status |= FEATURES_OK;
                Ok(Effect::Features(self.driver_features))
            }
            DRIVER_OK if self.has(FEATURES_OK) => {
                self.status |= DRIVER_OK;
                Ok(Effect::Activate(self.ready_queues()))
            }
            _ => Err(Refused::Status),
        }
    }

    fn set(&mut self, bits: u8) -> Result<Effect, Refused> {
        self.status |= bits;
        Ok(Effect::None)
    }

    /// The device cannot go on: it failed to activate, or the driver broke the protocol. True if the driver
    /// has to be told by a configuration interrupt (it had set DRIVER_OK).
    pub fn needs_reset(&mut self) -> bool {
        self.status |= DEVICE_NEEDS_RESET;
        self.has(DRIVER_OK)
    }

    fn reset(&mut self) {
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.status = 0;
        self.selected = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max_size);
        }
    }

    /// Selects the 32-bit page of the offered features.
    pub fn select_device_features(&mut self, page: u32) {
        self.device_features_page = page;
    }

    /// The selected page of the offered features; pages above 1 are empty.
    pub fn device_features(&self) -> u32 {
        match self.device_features_page {
            0 => self.device_features as u32,
            1 => (self.device_features >> 32) as u32,
            _ => 0,
        }
    }

    /// Selects the 32-bit page of the accepted features.
    pub fn select_driver_features(&mut self, page: u32) {
        self.driver_features_page = page;
    }

    /// The driver accepts the features in `value` of the selected page.
    ///
    /// # Errors
    /// [`Refused::Features`]
    pub fn write_driver_features(&mut self, value: u32) -> Result<(), Refused> {
        if !self.has(DRIVER) || self.status & !(ACKNOWLEDGE | DRIVER) != 0 {
            return Err(Refused::Features);
        }
        let value = u64::from(value);
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ if value != 0 => return Err(Refused::Features),
            _ => {}
        }
        Ok(())
    }

    /// Selects a queue; one that does not exist reads as absent (size 0).
    pub fn select_queue(&mut self, queue: u32) {
        self.selected = queue;
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    fn queue_mut(&mut self) -> Result<&mut QueueSetup, Refused> {
        let window = self.has(FEATURES_OK) && self.status & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) == 0;
        let selected = usize::try_from(self.selected).map_err(|_| Refused::NoSuchQueue)?;
        let queue = self.queues.get_mut(selected).ok_or(Refused::NoSuchQueue)?;
        if window { Ok(queue) } else { Err(Refused::Queue) }
    }

    fn queue_in_setup(&mut self) -> Result<&mut QueueSetup, Refused> {
        let queue = self.queue_mut()?;
        if queue.ready { Err(Refused::Queue) } else { Ok(queue) }
    }

    /// Largest size of the selected queue; 0 if it does not exist.
    pub fn queue_max_size(&self) -> u16 {
        self.queue().map_or(0, |queue| queue.max_size)
    }

    /// Size of the selected queue; 0 if it does not exist.
    pub fn queue_size(&self) -> u16 {
        self.queue().map_or(0, |queue| queue.layout.size)
    }

    /// Whether the selected queue is ready.
    pub fn queue_ready(&self) -> bool {
        self.queue().is_some_and(|queue| queue.ready)
    }

    /// The driver sets the size of the selected queue.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn write_queue_size(&mut self, size: u16) -> Result<(), Refused> {
        let queue = self.queue_in_setup()?;
        if !size.is_power_of_two() || size > queue.max_size {
            return Err(Refused::QueueSize);
        }
        queue.layout.size = size;
        Ok(())
    }

    /// The driver writes the low or high half of a ring address.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn write_ring_address(&mut self, part: RingPart, high: bool, value: u32) -> Result<(), Refused> {
        let queue = self.queue_in_setup()?;
        let address = match part {
            RingPart::Desc => &mut queue.layout.desc_table,
            RingPart::Avail => &mut queue.layout.avail_ring,
            RingPart::Used => &mut queue.layout.used_ring,
        };
        let value = u64::from(value);
        *address = if high { *address & 0xffff_ffff | value << 32 } else { *address & !0xffff_ffff | value };
        Ok(())
    }

    /// The driver makes the selected queue ready (its set-up is frozen) or, before DRIVER_OK, unready. That a
    /// queue which is not ready shall not be is no change: drivers say so after a reset.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn write_queue_ready(&mut self, ready: bool) -> Result<(), Refused> {
        if !ready && self.queue().is_some_and(|queue| !queue.ready) {
            return Ok(());
        }
        self.queue_mut()?.ready = ready;
        Ok(())
    }

    /// Where the queues lie that the driver made ready, if the device runs.
    pub fn running_queues(&self) -> Vec<(u16, RingLayout)> {
        if self.active() { self.ready_queues() } else { Vec::new() }
    }

    fn ready_queues(&self) -> Vec<(u16, RingLayout)> {
        let ready = self.queues.iter().enumerate().filter(|(_, queue)| queue.ready);
        ready.map(|(index, queue)| (u16::try_from(index).unwrap_or(u16::MAX), queue.layout)).collect()
    }

    /// The features that were settled; 0 before FEATURES_OK.
    pub fn settled_features(&self) -> u64 {
        if self.has(FEATURES_OK) { self.driver_features } else { 0 }
    }
}
