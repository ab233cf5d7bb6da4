//! One virtqueue of a device: position, state and in-flight count around virtio-queue's `Queue`.
//!
//! A ring is configured by its shell and used by its core. It runs between [`Ring::start`] and
//! [`Ring::stop`]; its position survives a stop, so that a resumed ring goes on where it was.

use std::fmt;
use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::chain::{Chain, ChainError};
use crate::{GuestRam, VIRTIO_F_EVENT_IDX};

/// Largest split ring (virtio 1.2, 2.7).
pub const MAX_RING_SIZE: u16 = 32768;

/// Where the three parts of a split ring lie (guest-physical) and how large it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingLayout {
    /// Number of descriptors: a power of two, at most the device's maximum.
    pub size: u16,
    /// Descriptor table, 16-byte aligned.
    pub desc_table: u64,
    /// Available ring, 2-byte aligned.
    pub avail_ring: u64,
    /// Used ring, 4-byte aligned.
    pub used_ring: u64,
}

/// What is wrong with a ring.
#[derive(Debug)]
pub enum RingError {
    /// The layout was refused: size, alignment or a part outside memory.
    Layout(RingLayout, &'static str),
    /// The ring does not run.
    NotRunning,
    /// The driver's `avail.idx` is further ahead than the ring is long.
    AvailIndexJump,
    /// A chain was refused.
    Chain(ChainError),
    /// A part of the ring cannot be reached any more.
    Access(QueueError),
    /// The core completed a chain that it did not hold.
    NotInFlight,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(layout, reason) => write!(f, "Ring {layout:?} refused: {reason}"),
            Self::NotRunning => f.write_str("Ring is not running"),
            Self::AvailIndexJump => f.write_str("Driver's available index jumped past the ring size"),
            Self::Chain(_) => f.write_str("Driver offered a bad descriptor chain"),
            Self::Access(error) => write!(f, "Ring cannot be accessed: {error}"),
            Self::NotInFlight => f.write_str("Completed a chain that was not in flight"),
        }
    }
}

impl std::error::Error for RingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Chain(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ChainError> for RingError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

/// A virtqueue. All methods that touch guest memory fail with [`RingError`] and leave the ring as it was.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    layout: RingLayout,
    running: bool,
    in_flight: u16,
    /// Used index up to which the driver was told, or did not want to be.
    announced: Wrapping<u16>,
    /// Position at the last stop: tells a resumed driver from a new one.
    parked_at: Option<u16>,
}

impl Ring {
    /// A stopped ring of at most `max_size` descriptors.
    ///
    /// # Errors
    /// `max_size` is not a power of two between 1 and 32768.
    pub fn new(max_size: u16) -> Result<Self, RingError> {
        let queue = Queue::new(max_size).map_err(RingError::Access)?;
        Ok(Self {
            queue,
            layout: RingLayout::default(),
            running: false,
            in_flight: 0,
            announced: Wrapping(0),
            parked_at: None,
        })
    }

    /// Starts the ring at available index `next_avail`. Returns true if the driver goes on where the ring
    /// was stopped before, false if this is a new driver (after a reset, or the first one).
    ///
    /// # Errors
    /// [`RingError::Layout`]; the ring stays stopped.
    pub fn start(
        &mut self,
        ram: &GuestRam,
        layout: RingLayout,
        next_avail: u16,
        features: u64,
    ) -> Result<bool, RingError> {
        self.running = false;
        self.in_flight = 0;
        let refused = |reason| RingError::Layout(layout, reason);
        let queue = &mut self.queue;
        queue.reset();
        queue.try_set_size(layout.size).map_err(|_| refused("size"))?;
        queue
            .try_set_desc_table_address(GuestAddress(layout.desc_table))
            .map_err(|_| refused("descriptor table is not 16-byte aligned"))?;
        queue
            .try_set_avail_ring_address(GuestAddress(layout.avail_ring))
            .map_err(|_| refused("available ring is not 2-byte aligned"))?;
        queue
            .try_set_used_ring_address(GuestAddress(layout.used_ring))
            .map_err(|_| refused("used ring is not 4-byte aligned"))?;
        let size = usize::from(layout.size);
        // Sizes of the three parts: virtio 1.2, 2.7 (16, 6 + 2n, 6 + 8n).
        let parts = [
            (layout.desc_table, 16 * size),
            (layout.avail_ring, 6 + 2 * size),
            (layout.used_ring, 6 + 8 * size),
        ];
        for (guest_addr, len) in parts {
            if guest_addr == 0 || !GuestMemoryBackend::check_range(ram, GuestAddress(guest_addr), len) {
                return Err(refused("a part lies outside guest memory"));
            }
        }
        queue.set_event_idx(features & VIRTIO_F_EVENT_IDX != 0);
        queue.set_next_avail(next_avail);
        queue.set_ready(true);
        let used = queue.used_idx(ram, Ordering::Acquire).map_err(RingError::Access)?;
        queue.set_next_used(used.0);
        self.announced = used;
        self.layout = layout;
        self.running = true;
        Ok(self.parked_at.take() == Some(next_avail))
    }

    /// Stops the ring and returns the available index at which a later start can go on. Chains still in
    /// flight are not part of it: the caller drains the core first.
    pub fn stop(&mut self) -> u16 {
        let position = self.queue.next_avail();
        if self.running {
            self.running = false;
            self.parked_at = Some(position);
        }
        position
    }

    /// Makes a later start at `position` count as going on (restore of saved state).
    pub(crate) fn park_at(&mut self, position: u16) {
        self.parked_at = Some(position);
    }

    /// Forgets everything, as at power-on.
    pub fn reset(&mut self) {
        self.queue.reset();
        self.layout = RingLayout::default();
        self.running = false;
        self.in_flight = 0;
        self.announced = Wrapping(0);
        self.parked_at = None;
    }

    /// Where the ring was at its last start.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Whether the ring runs.
    pub fn running(&self) -> bool {
        self.running
    }

    /// Chains popped and not yet completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next available index that the device will look at.
    pub fn position(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Takes the next chain into `chain`; false if there is none.
    ///
    /// # Errors
    /// The driver broke the protocol; the device needs a reset.
    pub fn pop(&mut self, ram: &GuestRam, chain: &mut Chain) -> Result<bool, RingError> {
        if !self.running {
            return Err(RingError::NotRunning);
        }
        let walk = match self.queue.iter(ram) {
            Ok(mut available) => available.next(),
            Err(QueueError::InvalidAvailRingIndex) => return Err(RingError::AvailIndexJump),
            Err(error) => return Err(RingError::Access(error)),
        };
        let Some(walk) = walk else { return Ok(false) };
        // A driver that offers more chains than it has descriptors offers some of them twice.
        if self.in_flight >= self.queue.size() {
            self.queue.go_to_previous_position();
            return Err(RingError::AvailIndexJump);
        }
        chain.load(walk, ram)?;
        self.in_flight += 1;
        Ok(true)
    }

    /// Puts back the chain popped last, untouched. Only while no other chain was completed out of order.
    pub fn unpop(&mut self) {
        if self.in_flight > 0 {
            self.in_flight -= 1;
            self.queue.go_to_previous_position();
        }
    }

    /// Whether the driver has made chains available that were not popped yet.
    pub fn has_available(&self, ram: &GuestRam) -> bool {
        self.running
            && self
                .queue
                .avail_idx(ram, Ordering::Acquire)
                .is_ok_and(|index| index != Wrapping(self.queue.next_avail()))
    }

    /// How many chains the driver says it has made available that were not popped yet.
    pub fn available(&self, ram: &GuestRam) -> u16 {
        match self.queue.avail_idx(ram, Ordering::Acquire) {
            Ok(index) if self.running => (index - Wrapping(self.queue.next_avail())).0,
            _ => 0,
        }
    }

    /// Gives the chain `head` back with `written` bytes in its writable part.
    ///
    /// # Errors
    /// [`RingError::NotInFlight`] or an access fault.
    pub fn complete(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), RingError> {
        if !self.running {
            return Err(RingError::NotRunning);
        }
        self.in_flight = self.in_flight.checked_sub(1).ok_or(RingError::NotInFlight)?;
        self.queue.add_used(ram, head, written).map_err(RingError::Access)
    }

    /// Gives several chains back at once: the driver sees all of them or none (virtio 1.2, 5.1.6.4: the
    /// buffers of one packet).
    ///
    /// # Errors
    /// As [`Self::complete`]; the driver has seen none of them.
    pub fn complete_all(&mut self, ram: &GuestRam, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let Some((&(last_head, last_written), others)) = chains.split_last() else { return Ok(()) };
        if !self.running {
            return Err(RingError::NotRunning);
        }
        let count = u16::try_from(chains.len()).map_err(|_| RingError::NotInFlight)?;
        self.in_flight = self.in_flight.checked_sub(count).ok_or(RingError::NotInFlight)?;
        let mut next_used = Wrapping(self.queue.next_used());
        for &(head, written) in others {
            // Beside virtio-queue, which would show each of them at once. Layout: virtio 1.2, 2.7.8.
            let slot = u64::from(next_used.0 % self.queue.size());
            let element = u64::from(head) | u64::from(written) << 32;
            let at = GuestAddress(self.queue.used_ring().wrapping_add(4 + 8 * slot));
            ram.write_obj(element.to_le(), at)
                .map_err(|error| RingError::Access(QueueError::GuestMemory(error)))?;
            next_used += 1;
        }
        self.queue.set_next_used(next_used.0);
        self.queue.add_used(ram, last_head, last_written).map_err(RingError::Access)
    }

    /// Asks the driver not to kick for now. A hint only.
    pub fn suppress_kicks(&mut self, ram: &GuestRam) -> Result<(), RingError> {
        self.queue.disable_notification(ram).map_err(RingError::Access)
    }

    /// Asks for kicks again; true if chains arrived meanwhile and no kick may come for them.
    pub fn allow_kicks(&mut self, ram: &GuestRam) -> Result<bool, RingError> {
        self.queue.enable_notification(ram).map_err(RingError::Access)
    }

    /// Chains completed since the last call of [`Self::wants_notification`].
    pub fn unannounced(&self) -> u16 {
        (Wrapping(self.queue.next_used()) - self.announced).0
    }

    /// Whether the driver wants to hear of what was completed since the last call.
    pub fn wants_notification(&mut self, ram: &GuestRam) -> Result<bool, RingError> {
        let used = Wrapping(self.queue.next_used());
        let announced = std::mem::replace(&mut self.announced, used);
        if used == announced {
            return Ok(false);
        }
        // What was written to the used ring is seen by the driver before its wishes are read here.
        std::sync::atomic::fence(Ordering::SeqCst);
        let avail_ring = self.queue.avail_ring();
        let load = |offset: u64| {
            ram.load(GuestAddress(avail_ring.wrapping_add(offset)), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(|error| RingError::Access(QueueError::GuestMemory(error)))
        };
        if self.queue.event_idx_enabled() {
            // used_event follows the available ring (virtio 1.2, 2.7.7.2 and vring_need_event).
            let event = Wrapping(load(4 + 2 * u64::from(self.queue.size()))?);
            return Ok(used - event - Wrapping(1) < used - announced);
        }
        // Not done by virtio-queue: without EVENT_IDX the driver may set a flag (virtio 1.2, 2.7.7).
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
