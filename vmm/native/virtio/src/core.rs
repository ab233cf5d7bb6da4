//! What a device core is, and what it is given to work with.

use std::fmt;

use crate::chain::{Chain, ChainError};
use crate::events::Events;
use crate::record::RecordError;
use crate::ring::{Ring, RingError};
use crate::{GuestRam, GuestRamHandle};

/// What the driver should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// Buffers of this queue were used.
    Queue(u16),
    /// The configuration space changed.
    Config,
    /// The driver broke the protocol; the device stands still until it is reset.
    NeedsReset,
}

/// The way to the driver; the shell implements it (an eventfd, an interrupt line, a message).
pub trait Notifier: Send {
    /// Tells the driver. Must not wait.
    fn notify(&self, what: Notification);

    /// The driver broke the protocol; [`Notification::NeedsReset`] follows. For the host's records.
    fn faulted(&self, _fault: &DeviceFault) {}

    /// The host's side of the device failed; the guest has its answer. For the host's records.
    fn backend_failed(&self, _error: &std::io::Error) {}
}

/// What a device is, before anything runs: the same for every shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device ID (virtio 1.2, section 5).
    pub device_type: u32,
    /// Short name for logs and saved state.
    pub name: &'static str,
    /// Features offered, ring features included.
    pub features: u64,
    /// Largest size of each queue; a power of two each.
    pub queue_sizes: Vec<u16>,
    /// Length of the configuration space in bytes.
    pub config_len: u32,
}

/// Whether a core has more to do right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All done until the next kick or event.
    Idle,
    /// The core stopped at its work limit; [`DeviceCore::resume`] is called soon.
    Again,
}

/// The driver broke the protocol on a queue. Ends the device's work until a reset, nothing else.
#[derive(Debug)]
pub struct DeviceFault {
    /// The queue concerned.
    pub queue: u16,
    /// What was wrong.
    pub error: RingError,
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault on queue {}", self.queue)
    }
}

impl std::error::Error for DeviceFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Why a device cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveObstacle {
    /// The guest has mounted the share: it holds references to files of this host.
    MountedShare,
}

impl fmt::Display for SaveObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MountedShare => f.write_str("The guest has mounted a share; it must unmount it first"),
        }
    }
}

impl std::error::Error for SaveObstacle {}

/// A device without a transport. All methods run on one thread, the worker's.
///
/// Life: `attach` once; then `queue_started`, `process_queue`, `process_event`, `drain` in any order, with
/// `reset` at any moment.
pub trait DeviceCore: Send {
    /// What the device is. Constant over its life.
    fn info(&self) -> &DeviceInfo;

    /// Registers the core's own descriptors.
    ///
    /// # Errors
    /// The host refused; the device cannot be used.
    fn attach(&mut self, _io: &mut DeviceIo<'_>) -> std::io::Result<()> {
        Ok(())
    }

    /// The configuration space as it is now. Shells keep a copy: what changes it is announced by
    /// [`DeviceIo::notify_config`], unless it is one of the calls below, `reset` or `restore`.
    fn config(&self) -> ConfigSpace {
        ConfigSpace::default()
    }

    /// The driver wrote `data` at `offset` (inside the configuration space). Most devices ignore it.
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    /// The driver accepted `features`; they are among those offered.
    fn set_features(&mut self, _features: u64) {}

    /// A queue begins to run. `resumed` is false if a new driver begins: what the core knows of the old
    /// one is void. `process_queue` follows at once, kick or no kick.
    fn queue_started(&mut self, _io: &mut DeviceIo<'_>, _queue: u16, _resumed: bool) {}

    /// A queue has stopped, everything of it having been drained. Not called by a reset.
    fn queue_stopped(&mut self, _io: &mut DeviceIo<'_>, _queue: u16) {}

    /// The driver may have made buffers available on `queue`.
    ///
    /// # Errors
    /// The driver broke the protocol.
    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault>;

    /// A descriptor of the core is ready.
    ///
    /// # Errors
    /// As [`Self::process_queue`].
    fn process_event(
        &mut self,
        _io: &mut DeviceIo<'_>,
        _token: u64,
        _ready: crate::Ready,
    ) -> Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }

    /// Goes on with work left behind with [`Progress::Again`].
    ///
    /// # Errors
    /// As [`Self::process_queue`].
    fn resume(&mut self, _io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }

    /// Completes or puts back every chain in flight. Afterwards the core touches no guest memory until the
    /// next call into it. A core without asynchronous work has nothing to do.
    fn drain(&mut self, _io: &mut DeviceIo<'_>) {}

    /// As [`Self::drain`], for a driver that is gone: what is in flight may be given up instead of finished.
    fn cancel(&mut self, io: &mut DeviceIo<'_>) {
        self.drain(io);
    }

    /// Back to the state after creation. Host-side listeners stay.
    fn reset(&mut self, io: &mut DeviceIo<'_>);

    /// Why the device cannot be saved now, if it cannot: it holds what means nothing elsewhere.
    fn save_obstacle(&self) -> Option<SaveObstacle> {
        None
    }

    /// The core's own state, as a record of the core's kind.
    fn save(&self) -> Vec<u8>;

    /// Takes over what [`Self::save`] returned, of this or an older version of the program.
    ///
    /// # Errors
    /// The bytes are not such a record; the core is unchanged.
    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError>;
}

/// A copy of a configuration space, little-endian fields in the device's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// From the raw bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the device has no configuration.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes `offset..offset + len`, or nothing if they are not all there.
    pub fn get(&self, offset: u32, len: u32) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.bytes.get(start..end)
    }
}

/// Everything a core may use during one call.
pub struct DeviceIo<'a> {
    pub(crate) rings: &'a mut [Ring],
    pub(crate) ram: Option<&'a GuestRamHandle>,
    pub(crate) notifier: &'a dyn Notifier,
    pub(crate) usable: bool,
    /// The descriptors the device waits for.
    pub events: &'a Events,
}

impl DeviceIo<'_> {
    /// The queue, if it runs and the device is usable.
    pub fn ring(&mut self, queue: u16) -> Option<RunningRing<'_>> {
        let ring = self.rings.get_mut(usize::from(queue))?;
        if !self.usable || !ring.running() {
            return None;
        }
        Some(RunningRing { queue, ring, ram: self.ram?, notifier: self.notifier })
    }

    /// Tells the driver that the configuration space changed.
    pub fn notify_config(&self) {
        self.notifier.notify(Notification::Config);
    }

    /// Tells the host that the backend failed. The guest is answered by the device, not by this.
    pub fn report_backend_error(&self, error: &std::io::Error) {
        self.notifier.backend_failed(error);
    }
}

/// A queue that runs, with the memory it lies in.
pub struct RunningRing<'a> {
    queue: u16,
    ring: &'a mut Ring,
    ram: &'a GuestRamHandle,
    notifier: &'a dyn Notifier,
}

impl<'a> RunningRing<'a> {
    /// Guest memory.
    pub fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// A handle that keeps guest memory alive, for work that outlasts the call.
    pub fn ram_handle(&self) -> &'a GuestRamHandle {
        self.ram
    }

    /// Names this queue in an error.
    pub fn fault(&self, error: impl Into<RingError>) -> DeviceFault {
        DeviceFault { queue: self.queue, error: error.into() }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Takes the next chain; false if there is none.
    ///
    /// # Errors
    /// The driver broke the protocol.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, DeviceFault> {
        self.ring.pop(self.ram, chain).map_err(|error| DeviceFault { queue: self.queue, error })
    }

    /// Puts the chain popped last back.
    pub fn unpop(&mut self) {
        self.ring.unpop();
    }

    /// Whether chains wait to be popped.
    pub fn has_available(&self) -> bool {
        self.ring.has_available(self.ram)
    }

    /// How many chains the driver says wait to be popped.
    pub fn available(&self) -> u16 {
        self.ring.available(self.ram)
    }

    /// Gives a chain back.
    ///
    /// # Errors
    /// The ring cannot be reached any more.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), DeviceFault> {
        self.ring.complete(self.ram, head, written).map_err(|error| self.fault(error))
    }

    /// Copies out of a chain's readable part. See [`Chain::read_at`].
    ///
    /// # Errors
    /// The chain is too short.
    pub fn read(&self, chain: &Chain, offset: u32, data: &mut [u8]) -> Result<(), ChainError> {
        chain.read_at(self.ram, offset, data)
    }

    /// Copies into a chain's writable part. See [`Chain::write_at`].
    ///
    /// # Errors
    /// The chain is too short.
    pub fn write(&self, chain: &Chain, offset: u32, data: &[u8]) -> Result<(), ChainError> {
        chain.write_at(self.ram, offset, data)
    }

    /// Asks for no kicks while the core works.
    ///
    /// # Errors
    /// The ring cannot be reached any more.
    pub fn suppress_kicks(&mut self) -> Result<(), DeviceFault> {
        self.ring.suppress_kicks(self.ram).map_err(|error| self.fault(error))
    }

    /// Asks for kicks again; true if chains arrived meanwhile.
    ///
    /// # Errors
    /// The ring cannot be reached any more.
    pub fn allow_kicks(&mut self) -> Result<bool, DeviceFault> {
        self.ring.allow_kicks(self.ram).map_err(|error| self.fault(error))
    }

    /// Gives several chains back at once, as (head, bytes written): the driver sees all of them or none.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub fn complete_all(&mut self, chains: &[(u16, u32)]) -> Result<(), DeviceFault> {
        self.ring.complete_all(self.ram, chains).map_err(|error| self.fault(error))
    }

    /// Chains completed since the last call of [`Self::notify`].
    pub fn unannounced(&self) -> u16 {
        self.ring.unannounced()
    }

    /// Tells the driver of completed chains, if it wants to know.
    ///
    /// # Errors
    /// The ring cannot be reached any more.
    pub fn notify(&mut self) -> Result<(), DeviceFault> {
        if self.ring.wants_notification(self.ram).map_err(|error| self.fault(error))? {
            self.notifier.notify(Notification::Queue(self.queue));
        }
        Ok(())
    }
}
