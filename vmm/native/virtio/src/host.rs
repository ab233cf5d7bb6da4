//! One device put together: core, rings, guest memory, descriptors. Single-threaded; a [`crate::Worker`]
//! turns its crank, tests turn it by hand.
#![expect(unsafe_code, reason = "descriptors that have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use vmm_sys_util::epoll::EpollEvent;
use vmm_sys_util::eventfd::EventFd;

use crate::core::{
    DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Notification, Notifier, Progress, SaveObstacle,
};
use crate::events::{Events, Interest, KICK_TOKEN, MAX_CORE_TOKEN, Ready};
use crate::record::{RecordError, RecordReader, RecordWriter, kind};
use crate::ring::{MAX_RING_SIZE, Ring, RingError, RingLayout};
use crate::{ConfigSpace, GuestRamHandle, negotiated};

const RECORD_KIND: u32 = kind(*b"DEVH");
const RECORD_VERSION: u32 = 1;
const EVENTS_PER_TURN: usize = 64;

/// How a shell starts a queue.
#[derive(Debug)]
pub struct RingStart {
    /// Which queue.
    pub queue: u16,
    /// Where it lies.
    pub layout: RingLayout,
    /// The available index to begin at.
    pub next_avail: u16,
    /// The eventfd that the driver kicks; none if the shell calls [`DeviceHost::kick`] itself.
    pub kick: Option<OwnedFd>,
}

/// Another descriptor of a doorbell, for [`RingStart::kick`]: shells that keep theirs need no unsafe code for it.
///
/// # Errors
/// No descriptors left.
pub fn duplicate(doorbell: &EventFd) -> io::Result<OwnedFd> {
    // SAFETY: the doorbell is open as long as the reference to it lives.
    let doorbell = unsafe { BorrowedFd::borrow_raw(doorbell.as_raw_fd()) };
    doorbell.try_clone_to_owned()
}

/// Takes back the kicks that were heard: QEMU looks for some when it gets its descriptor back, and would take
/// up the queue itself. Never waits, even if it is a descriptor whose reads do.
fn empty(kick: &File) {
    let mut count = [0u8; 8];
    let buffer = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: one iovec, which describes `count`; the offset -1 is that of read(2). If it fails, it is not an
    // eventfd, and there is nothing to take back.
    unsafe { libc::preadv2(kick.as_raw_fd(), &buffer, 1, -1, libc::RWF_NOWAIT) };
}

/// A device core with everything it works on.
pub struct DeviceHost {
    core: Box<dyn DeviceCore>,
    rings: Vec<Ring>,
    kicks: Vec<Option<File>>,
    ram: Option<GuestRamHandle>,
    events: Events,
    notifier: Box<dyn Notifier>,
    features: u64,
    broken: Option<DeviceFault>,
    paused: bool,
    again: bool,
    buffer: Vec<EpollEvent>,
    commands_ready: bool,
}

impl DeviceHost {
    /// Puts a device together. Its queues are stopped.
    ///
    /// # Errors
    /// No epoll descriptor, or the core could not register its own.
    pub fn new(core: Box<dyn DeviceCore>, notifier: Box<dyn Notifier>) -> io::Result<Self> {
        let rings = core
            .info()
            .queue_sizes
            .iter()
            // The device's own limit is the transport's to enforce. A vhost-user front end has its own (QEMU's
            // virtio-mmio lets every driver choose 1024), and a core works with any size.
            .map(|_| Ring::new(MAX_RING_SIZE))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut host = Self {
            kicks: rings.iter().map(|_| None).collect(),
            core,
            rings,
            ram: None,
            events: Events::new()?,
            notifier,
            features: 0,
            broken: None,
            paused: false,
            again: false,
            buffer: vec![EpollEvent::default(); EVENTS_PER_TURN],
            commands_ready: false,
        };
        host.with_core(|core, io| core.attach(io))?;
        Ok(host)
    }

    fn with_core<T>(&mut self, call: impl FnOnce(&mut dyn DeviceCore, &mut DeviceIo<'_>) -> T) -> T {
        let mut io = DeviceIo {
            rings: &mut self.rings,
            ram: self.ram.as_ref(),
            notifier: self.notifier.as_ref(),
            usable: self.broken.is_none() && !self.paused,
            events: &self.events,
        };
        call(self.core.as_mut(), &mut io)
    }

    fn run(
        &mut self,
        call: impl FnOnce(&mut dyn DeviceCore, &mut DeviceIo<'_>) -> Result<Progress, DeviceFault>,
    ) {
        match self.with_core(call) {
            Ok(Progress::Idle) => {}
            Ok(Progress::Again) => self.again = true,
            Err(fault) => {
                if self.broken.is_none() {
                    self.notifier.faulted(&fault);
                    self.broken = Some(fault);
                    self.notifier.notify(Notification::NeedsReset);
                }
            }
        }
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        self.core.info()
    }

    /// Why the device waits for a reset, if it does.
    pub fn fault(&self) -> Option<&DeviceFault> {
        self.broken.as_ref()
    }

    /// The features the driver accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The configuration space as it is now.
    pub fn config(&self) -> ConfigSpace {
        self.core.config()
    }

    /// The driver writes the configuration space; refused if any byte lies outside.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> bool {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.core.info().config_len);
        if inside {
            self.core.write_config(offset, data);
        }
        inside
    }

    /// The driver accepted `features`; false if it may not.
    pub fn set_features(&mut self, features: u64) -> bool {
        if !negotiated(self.core.info().features, features) {
            return false;
        }
        self.features = features;
        self.core.set_features(features);
        true
    }

    /// Uses `ram` from now on. Rings that run go on in it, if they lie in it.
    ///
    /// # Errors
    /// A running ring does not lie in the new memory; that ring is stopped.
    pub fn set_memory(&mut self, ram: GuestRamHandle) -> Result<(), RingError> {
        self.with_core(|core, io| core.drain(io));
        let mut outcome = Ok(());
        for ring in &mut self.rings {
            if ring.running() {
                let position = ring.stop();
                if let Err(error) = ring.start(&ram, ring.layout(), position, self.features) {
                    outcome = Err(error);
                }
            }
        }
        // The old mapping goes when its last handle does; after the drain this is the last one here.
        self.ram = Some(ram);
        // A core that held requests back for those in flight goes on with them.
        self.again = true;
        outcome
    }

    /// Lets go of guest memory. All rings are stopped first; they remember where they were.
    pub fn forget_memory(&mut self) {
        for queue in 0..self.rings.len() {
            self.stop_ring(u16::try_from(queue).unwrap_or(u16::MAX));
        }
        self.ram = None;
    }

    /// Starts a queue and looks into it at once: a ring that was filled before and is never kicked is seen.
    ///
    /// # Errors
    /// No such queue, no memory yet, a layout that is refused, or a kick that cannot be watched.
    pub fn start_ring(&mut self, start: RingStart) -> Result<(), RingError> {
        let RingStart { queue, layout, next_avail, kick } = start;
        let refused = |reason| RingError::Layout(layout, reason);
        let index = usize::from(queue);
        self.forget_kick(index);
        let ram = self.ram.clone().ok_or(refused("no guest memory yet"))?;
        let ring = self.rings.get_mut(index).ok_or(refused("no such queue"))?;
        let resumed = ring.start(&ram, layout, next_avail, self.features)?;
        if let Some(kick) = kick {
            let token = KICK_TOKEN | u64::from(queue);
            // Kicks are counted by nobody, so they need not be read: a system call less for each.
            if self.events.add(kick.as_raw_fd(), token, Interest::Signals).is_err() {
                ring.stop();
                return Err(refused("the kick descriptor cannot be watched"));
            }
            if let Some(slot) = self.kicks.get_mut(index) {
                *slot = Some(File::from(kick));
            }
        }
        self.with_core(|core, io| core.queue_started(io, queue, resumed));
        self.kick(queue);
        Ok(())
    }

    /// Stops a queue after everything in flight has come to rest. Returns where it stands.
    pub fn stop_ring(&mut self, queue: u16) -> Option<u16> {
        let index = usize::from(queue);
        self.with_core(|core, io| core.drain(io));
        // The other queues go on with what the drain held up.
        self.again = true;
        self.forget_kick(index);
        let ring = self.rings.get_mut(index)?;
        let ran = ring.running();
        let position = ring.stop();
        if ran {
            self.with_core(|core, io| core.queue_stopped(io, queue));
        }
        Some(position)
    }

    fn forget_kick(&mut self, index: usize) {
        if let Some(kick) = self.kicks.get_mut(index).and_then(Option::take) {
            self.events.remove(kick.as_raw_fd());
            empty(&kick);
        }
    }

    /// Whether a queue runs.
    pub fn ring_running(&self, queue: u16) -> bool {
        self.rings.get(usize::from(queue)).is_some_and(Ring::running)
    }

    /// Everything back to power-on: rings stopped, driver forgotten, memory kept.
    pub fn reset(&mut self) {
        self.with_core(|core, io| {
            core.cancel(io);
            core.reset(io);
        });
        for index in 0..self.kicks.len() {
            self.forget_kick(index);
        }
        self.rings.iter_mut().for_each(Ring::reset);
        self.features = 0;
        self.broken = None;
        self.again = false;
    }

    /// Stands still: buffers in flight are finished, no guest memory is touched until [`Self::unpause`].
    pub fn pause(&mut self) {
        self.with_core(|core, io| core.drain(io));
        self.paused = true;
    }

    /// Goes on after a pause, with a look into every ring: kicks may have come meanwhile.
    pub fn unpause(&mut self) {
        self.paused = false;
        for queue in 0..self.rings.len() {
            self.kick(u16::try_from(queue).unwrap_or(u16::MAX));
        }
        self.again = true;
    }

    /// The driver kicked `queue`.
    pub fn kick(&mut self, queue: u16) {
        if self.ring_running(queue) {
            self.run(|core, io| core.process_queue(io, queue));
        }
    }

    /// Waits for something to do, at most `timeout_ms` (-1: for ever), and does it. True if it did anything.
    ///
    /// # Errors
    /// The epoll descriptor failed: a fault of the program, not of the guest.
    pub fn turn(&mut self, timeout_ms: i32) -> io::Result<bool> {
        let timeout = if self.again { 0 } else { timeout_ms };
        let mut buffer = std::mem::take(&mut self.buffer);
        let count = self.events.wait(timeout, &mut buffer);
        if let Ok(count) = count {
            for event in buffer.iter().take(count) {
                self.dispatch(event.data(), event.event_set().into());
            }
        }
        self.buffer = buffer;
        let worked = count? > 0 || self.again;
        if std::mem::take(&mut self.again) && !self.paused {
            self.run(|core, io| core.resume(io));
        }
        Ok(worked)
    }

    fn dispatch(&mut self, token: u64, ready: Ready) {
        if token <= MAX_CORE_TOKEN {
            self.run(|core, io| core.process_event(io, token, ready));
            return;
        }
        if token & KICK_TOKEN == 0 {
            self.commands_ready = true;
            return;
        }
        let queue = u16::try_from(token & !KICK_TOKEN).unwrap_or(u16::MAX);
        // One without a descriptor was stopped by an earlier event of the same batch.
        if let Some(Some(_)) = self.kicks.get(usize::from(queue)) {
            self.kick(queue);
        }
    }

    pub(crate) fn take_commands_ready(&mut self) -> bool {
        std::mem::take(&mut self.commands_ready)
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Why the device cannot be saved now, if it cannot. To be asked before [`Self::save`].
    pub fn save_obstacle(&self) -> Option<SaveObstacle> {
        self.core.save_obstacle()
    }

    /// The state of rings and core, everything in flight having come to rest.
    ///
    /// A record of a device for which there is a [`Self::save_obstacle`] is refused by every restore.
    pub fn save(&mut self) -> Vec<u8> {
        self.with_core(|core, io| core.drain(io));
        let mut record = RecordWriter::new(RECORD_KIND, RECORD_VERSION);
        record.u32(self.core.info().device_type).u64(self.features);
        record.u16(u16::try_from(self.rings.len()).unwrap_or(u16::MAX));
        for ring in &self.rings {
            let layout = ring.layout();
            record.u8(u8::from(ring.running())).u16(ring.position()).u16(layout.size);
            record.u64(layout.desc_table).u64(layout.avail_ring).u64(layout.used_ring);
        }
        record.bytes(&self.core.save()).finish()
    }

    /// Takes over saved state; returns for every ring that ran where it was. The shell starts those again
    /// with [`Self::start_ring`], whose checks they must pass like a live driver's.
    ///
    /// # Errors
    /// The record is refused; the device is then as after a reset.
    pub fn restore(&mut self, record: &[u8]) -> Result<Vec<Option<(RingLayout, u16)>>, RecordError> {
        self.reset();
        let outcome = self.restore_fields(record);
        if outcome.is_err() {
            self.reset();
        }
        outcome
    }

    fn restore_fields(&mut self, record: &[u8]) -> Result<Vec<Option<(RingLayout, u16)>>, RecordError> {
        let mut reader = RecordReader::open(record, RECORD_KIND, RECORD_VERSION)?;
        if reader.u32()? != self.core.info().device_type {
            return Err(RecordError::Value("device type"));
        }
        let features = reader.u64()?;
        if features != 0 && !self.set_features(features) {
            return Err(RecordError::Value("features"));
        }
        if usize::from(reader.u16()?) != self.rings.len() {
            return Err(RecordError::Value("number of queues"));
        }
        let mut rings = Vec::with_capacity(self.rings.len());
        for ring in &mut self.rings {
            let running = reader.flag("running")?;
            let position = reader.u16()?;
            let layout = RingLayout {
                size: reader.u16()?,
                desc_table: reader.u64()?,
                avail_ring: reader.u64()?,
                used_ring: reader.u64()?,
            };
            if running {
                ring.park_at(position);
            }
            rings.push(running.then_some((layout, position)));
        }
        let core = reader.bytes()?;
        reader.finish()?;
        self.core.restore(core)?;
        Ok(rings)
    }
}
