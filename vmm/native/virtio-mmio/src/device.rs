//! One device: registers for vCPUs, commands for its owner.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use strato_virtio::transport::status::DEVICE_NEEDS_RESET;
use strato_virtio::transport::{Effect, Refused, RingPart, Transport};
use strato_virtio::{
    ConfigSpace, DeviceCore, DeviceFault, DeviceHost, DeviceInfo, GuestRamHandle, Observer, RingLayout,
    RingStart, Worker, WorkerEnd, duplicate,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::MmioError;
use crate::registers::{MAGIC, NO_REGION, Place, Register, VENDOR, VERSION};
use crate::signals::{SignalNotifier, Signals};

/// The configuration space as it was after so many changes.
#[derive(Debug)]
struct Snapshot {
    space: ConfigSpace,
    changes: u32,
}

/// What vCPUs share under a lock. The device's thread never takes it.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) transport: Transport,
    /// None: the driver's side has done something that may have changed it.
    config: Option<Snapshot>,
}

impl Registers {
    pub(crate) fn new(info: &DeviceInfo) -> Self {
        Self { transport: Transport::new(info), config: None }
    }
}

/// A device core behind virtio-mmio registers, version 2. Dropping it stops the device's thread, everything in
/// flight having come to rest.
pub struct MmioDevice {
    name: String,
    pub(crate) info: DeviceInfo,
    pub(crate) signals: Arc<Signals>,
    pub(crate) observer: Arc<dyn Observer>,
    doorbells: Vec<EventFd>,
    registers: Mutex<Registers>,
    pub(crate) worker: Worker,
    refusals: AtomicU64,
}

impl MmioDevice {
    /// Starts the device's thread, which shows as `name`. The device has no guest memory yet.
    ///
    /// # Errors
    /// No descriptors or threads.
    pub fn new(name: &str, core: Box<dyn DeviceCore>, observer: Arc<dyn Observer>) -> io::Result<Self> {
        let info = core.info().clone();
        let signals = Arc::new(Signals::new()?);
        let doorbells = info.queue_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC));
        let doorbells = doorbells.collect::<io::Result<Vec<_>>>()?;
        let notifier = SignalNotifier { signals: Arc::clone(&signals), observer: Arc::clone(&observer) };
        let host = DeviceHost::new(core, Box::new(notifier))?;
        let (ending, hearing) = (Arc::clone(&signals), Arc::clone(&observer));
        let worker = Worker::start_watched(name, host, move |end| {
            if !matches!(end, WorkerEnd::Stopped) {
                ending.lose();
            }
            hearing.ended(end);
        })?;
        Ok(Self {
            name: name.to_owned(),
            registers: Mutex::new(Registers::new(&info)),
            info,
            signals,
            observer,
            doorbells,
            worker,
            refusals: AtomicU64::new(0),
        })
    }

    /// The device's name, as its thread has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Written for every interrupt, after the bit in InterruptStatus has been set: made for an edge.
    pub fn interrupt(&self) -> &EventFd {
        self.signals.line()
    }

    /// One for each queue: a write is a kick, at any time. What is written before the queue runs is not lost.
    /// They are never read while their queue runs.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// Register accesses that changed nothing because they came at the wrong time, in the wrong place or width, or
    /// with an impossible value.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        // Nothing panics while it holds the lock; plain values are never half-changed.
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        self.note_fault(&mut registers);
        registers
    }

    /// What the device's thread has said, for the rules of the registers.
    pub(crate) fn note_fault(&self, registers: &mut Registers) {
        if self.signals.needs_reset() {
            registers.transport.needs_reset();
        }
    }

    /// Runs `call` on the device's thread. None: there is none any more, and the driver is told.
    fn call<T: Send + 'static>(&self, call: impl FnOnce(&mut DeviceHost) -> T + Send + 'static) -> Option<T> {
        self.worker.call(call).inspect_err(|_| self.signals.lose()).ok()
    }

    /// A vCPU reads at `offset` of the window. Refused accesses read as all-ones, as where nobody answers;
    /// registers that do not exist or cannot be read, as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let done = match Place::of(offset, data.len()) {
            Place::Register(register) => {
                let value = self.read_register(register);
                if value.is_none() {
                    self.refused();
                }
                data.copy_from_slice(&value.unwrap_or(0).to_le_bytes());
                true
            }
            Place::Config(offset) => self.read_config(offset, data),
            Place::Nowhere => false,
        };
        if !done {
            self.refused();
            data.fill(0xff);
        }
    }

    fn read_register(&self, register: Register) -> Option<u32> {
        Some(match register {
            Register::InterruptStatus => self.signals.read_interrupts(),
            Register::ConfigGeneration => self.signals.changes(),
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.info.device_type,
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => self.registers().transport.device_features(),
            Register::QueueNumMax => self.registers().transport.queue_max_size().into(),
            Register::QueueReady => self.registers().transport.queue_ready().into(),
            Register::Status => self.status().into(),
            // No core behind this shell has shared memory yet. A window of the fs device (crate devices, fs::Window)
            // would be found here by what ShmSel selects.
            Register::ShmLenLow | Register::ShmLenHigh | Register::ShmBaseLow | Register::ShmBaseHigh => {
                NO_REGION
            }
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueNum
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh
            | Register::ShmSel
            | Register::Unknown => return None,
        })
    }

    fn status(&self) -> u8 {
        let status = self.registers().transport.status();
        // Once more: it may have come since the lock was taken.
        if self.signals.needs_reset() { status | DEVICE_NEEDS_RESET } else { status }
    }

    fn inside_config(&self, offset: u32, len: usize) -> bool {
        u64::from(offset) + len as u64 <= u64::from(self.info.config_len)
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> bool {
        if !self.inside_config(offset, data.len()) {
            return false;
        }
        let mut registers = self.registers();
        let changes = self.signals.changes();
        if registers.config.as_ref().is_none_or(|snapshot| snapshot.changes != changes) {
            let signals = Arc::clone(&self.signals);
            // Counted on the thread that changes it: both belong together.
            let snapshot =
                self.call(move |host| Snapshot { changes: signals.changes(), space: host.config() });
            registers.config = snapshot;
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let bytes = registers.config.as_ref().and_then(|snapshot| snapshot.space.get(offset, len));
        bytes.map(|bytes| data.copy_from_slice(bytes)).is_some()
    }

    /// A vCPU writes at `offset` of the window. Comes back when the device has done it.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let done = match Place::of(offset, data.len()) {
            Place::Register(register) => {
                let value = data.try_into().map(u32::from_le_bytes).unwrap_or_default();
                self.write_register(register, value).is_ok()
            }
            Place::Config(offset) => self.write_config(offset, data),
            Place::Nowhere => false,
        };
        if !done {
            self.refused();
        }
    }

    fn write_register(&self, register: Register, value: u32) -> Result<(), Refused> {
        let address = |part, high| self.registers().transport.write_ring_address(part, high, value);
        match register {
            Register::InterruptAck => self.signals.acknowledge(value),
            Register::QueueNotify => return self.ring_doorbell(value),
            Register::DeviceFeaturesSel => self.registers().transport.select_device_features(value),
            Register::DriverFeaturesSel => self.registers().transport.select_driver_features(value),
            Register::DriverFeatures => return self.registers().transport.write_driver_features(value),
            Register::QueueSel => self.registers().transport.select_queue(value),
            Register::QueueNum => {
                let size = u16::try_from(value).map_err(|_| Refused::QueueSize)?;
                return self.registers().transport.write_queue_size(size);
            }
            Register::QueueReady => {
                let ready = match value {
                    0 => false,
                    1 => true,
                    _ => return Err(Refused::Queue),
                };
                return self.registers().transport.write_queue_ready(ready);
            }
            Register::Status => return self.write_status(value),
            Register::QueueDescLow => return address(RingPart::Desc, false),
            Register::QueueDescHigh => return address(RingPart::Desc, true),
            Register::QueueDriverLow => return address(RingPart::Avail, false),
            Register::QueueDriverHigh => return address(RingPart::Avail, true),
            Register::QueueDeviceLow => return address(RingPart::Used, false),
            Register::QueueDeviceHigh => return address(RingPart::Used, true),
            // There is no region to select; drivers ask all the same.
            Register::ShmSel => {}
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueNumMax
            | Register::InterruptStatus
            | Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh
            | Register::ConfigGeneration
            | Register::Unknown => return Err(Refused::Register),
        }
        Ok(())
    }

    /// A kick that no ioeventfd has taken. It goes where that would have put it.
    fn ring_doorbell(&self, queue: u32) -> Result<(), Refused> {
        let doorbell = usize::try_from(queue).ok().and_then(|queue| self.doorbells.get(queue));
        // Fails only at a count of 2^64 - 2, where a kick is on its way anyway.
        let _ = doorbell.ok_or(Refused::NoSuchQueue)?.write(1);
        Ok(())
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> bool {
        if !self.inside_config(offset, data.len()) {
            return false;
        }
        let mut registers = self.registers();
        registers.config = None;
        let data = data.to_vec();
        self.call(move |host| host.write_config(offset, &data)).unwrap_or(false)
    }

    fn write_status(&self, value: u32) -> Result<(), Refused> {
        let value = u8::try_from(value).map_err(|_| Refused::Status)?;
        let mut registers = self.registers();
        match registers.transport.write_status(value)? {
            Effect::None => {}
            Effect::Reset => self.reset_device(&mut registers),
            Effect::Features(features) => {
                registers.config = None;
                let signals = Arc::clone(&self.signals);
                self.call(move |host| {
                    // The transport asked the same question before, so this is a contradiction of ours.
                    if !host.set_features(features) {
                        signals.break_down();
                    }
                });
            }
            Effect::Activate(queues) => self.activate(&queues),
        }
        Ok(())
    }

    fn reset_device(&self, registers: &mut Registers) {
        registers.config = None;
        let signals = Arc::clone(&self.signals);
        self.call(move |host| {
            host.reset();
            signals.reset();
        });
    }

    fn activate(&self, queues: &[(u16, RingLayout)]) {
        let starts: io::Result<Vec<RingStart>> =
            queues.iter().map(|&(queue, layout)| self.ring_start(queue, layout, 0)).collect();
        let (signals, observer) = (Arc::clone(&self.signals), Arc::clone(&self.observer));
        self.call(move |host| {
            signals.go_live();
            let outcome = match starts {
                Ok(starts) => start_rings(host, starts),
                Err(error) => {
                    observer.backend_failed(&error);
                    signals.break_down();
                    return;
                }
            };
            if let Err(fault) = outcome {
                observer.faulted(&fault);
                signals.break_down();
            }
        });
    }

    pub(crate) fn ring_start(
        &self,
        queue: u16,
        layout: RingLayout,
        next_avail: u16,
    ) -> io::Result<RingStart> {
        let doorbell = self.doorbells.get(usize::from(queue)).ok_or(io::ErrorKind::NotFound)?;
        Ok(RingStart { queue, layout, next_avail, kick: Some(duplicate(doorbell)?) })
    }

    /// Uses `ram` from now on. Queues that run go on in it.
    ///
    /// # Errors
    /// A running queue does not lie in it: the device needs a reset, and the driver is told. Or the device is lost.
    pub fn set_memory(&self, ram: GuestRamHandle) -> Result<(), MmioError> {
        let signals = Arc::clone(&self.signals);
        let outcome = self.worker.call(move |host| {
            host.set_memory(ram).inspect_err(|_| {
                host.reset();
                signals.break_down();
            })
        });
        outcome?.map_err(MmioError::Ring)
    }

    /// Stands still. Afterwards the device touches no guest memory until [`Self::unpause`]; kicks are kept. A
    /// device that is lost stands still anyway.
    pub fn pause(&self) {
        self.call(DeviceHost::pause);
    }

    /// As [`Self::pause`], but waits no longer than until `deadline`. False: something in flight takes longer; the
    /// device goes on when that is done.
    pub fn pause_before(&self, deadline: Instant) -> bool {
        match self.worker.call_before(deadline, DeviceHost::pause) {
            Ok(Some(())) => true,
            Ok(None) => {
                // If the thread ends before it comes to this, the device stands still for good.
                let _ = self.worker.send(DeviceHost::unpause);
                false
            }
            Err(_) => {
                self.signals.lose();
                true
            }
        }
    }

    /// Goes on after a pause with whatever the driver has done meanwhile.
    pub fn unpause(&self) {
        self.call(DeviceHost::unpause);
    }

    /// As after power-on, with the memory that it has: the machine is reset.
    pub fn reset(&self) {
        self.power_on(&mut self.registers());
    }

    pub(crate) fn power_on(&self, registers: &mut Registers) {
        // Never refused: a reset is always possible.
        let _ = registers.transport.write_status(0);
        self.reset_device(registers);
    }

    /// As [`Self::reset`], and lets go of guest memory: the device is taken out of its machine.
    pub fn release(&self) {
        self.reset();
        self.call(DeviceHost::forget_memory);
    }
}

/// Starts all of them, or leaves the device reset.
pub(crate) fn start_rings(host: &mut DeviceHost, starts: Vec<RingStart>) -> Result<(), DeviceFault> {
    for start in starts {
        let queue = start.queue;
        if let Err(error) = host.start_ring(start) {
            host.reset();
            return Err(DeviceFault { queue, error });
        }
    }
    Ok(())
}
