//! A device as its owner on the other side of the border has it: a core with its counters and controls, which is
//! served to a front end or plugged into a machine.

mod conversation;

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strato_plumbing::{Failure, Result};
use strato_vhost_user::Shell;
use strato_virtio::{DeviceCore, DeviceFault, Observer, WorkerEnd};
use strato_virtio_mmio::MmioDevice;

use self::conversation::Conversation;
use crate::events::{EventKind, EventRing};
use crate::kinds::Control;

/// Counters of a device by name, as they are now.
pub type Counters = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// What a constructor makes of its settings.
pub struct Parts {
    /// The device.
    pub core: Box<dyn DeviceCore>,
    /// Its counters.
    pub counters: Counters,
    /// What can be changed while it runs.
    pub control: Control,
}

/// Where a device's events go.
#[derive(Clone)]
pub struct Reporter {
    ring: Arc<EventRing>,
    tag: u64,
}

impl Reporter {
    /// Events of the device `tag` go to `ring`.
    pub fn new(ring: Arc<EventRing>, tag: u64) -> Self {
        Self { ring, tag }
    }

    fn push(&self, kind: EventKind, text: &str) {
        self.ring.push(self.tag, kind, text);
    }
}

impl Observer for Reporter {
    fn faulted(&self, fault: &DeviceFault) {
        self.push(EventKind::NeedsReset, &chain(fault));
    }

    fn backend_failed(&self, error: &io::Error) {
        self.push(EventKind::BackendError, &chain(error));
    }

    fn config_changed(&self) {
        self.push(EventKind::ConfigChanged, "Configuration space changed");
    }

    fn ended(&self, end: WorkerEnd) {
        match end {
            WorkerEnd::Stopped => {}
            WorkerEnd::Failed(error) => self.push(EventKind::Lost, &chain(&error)),
            WorkerEnd::Panicked(text) => self.push(EventKind::Panicked, &text),
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Where the core is.
enum Place {
    /// Nowhere yet.
    Loose(Box<dyn DeviceCore>),
    /// Behind vhost-user, for good: front ends come and go.
    Served { shell: Arc<Shell>, conversation: Option<Conversation> },
    /// Behind registers, for good: whoever holds another reference has it in its machine.
    Plugged(Arc<MmioDevice>),
    /// Lost while its thread was to be started.
    Spent,
}

impl Place {
    /// The core, if it is nowhere yet.
    fn take_core(&mut self) -> Option<Box<dyn DeviceCore>> {
        match std::mem::replace(self, Self::Spent) {
            Self::Loose(core) => Some(core),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// One device. Dropping it ends the conversation, drains the device and joins its threads; a device that is
/// plugged into a machine stays there until that lets it go.
pub struct Device {
    name: String,
    reporter: Reporter,
    counters: Counters,
    control: Control,
    place: Mutex<Place>,
}

impl Device {
    /// A device that is neither served nor plugged. It has no thread of its own yet.
    pub fn new(name: &str, parts: Parts, reporter: Reporter) -> Self {
        if let Control::Balloon(control) = &parts.control {
            let reporter = reporter.clone();
            control.on_actual(Box::new(move || {
                reporter.push(EventKind::BalloonChanged, "The guest has another size");
            }));
        }
        Self {
            name: name.to_owned(),
            reporter,
            counters: parts.counters,
            control: parts.control,
            place: Mutex::new(Place::Loose(parts.core)),
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        // Nothing panics between taking a place and putting the next one there.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self, where_it_is: &str) -> Failure {
        Failure::new(format!("Device {} {where_it_is}", self.name), libc::EBUSY)
    }

    fn spent(&self) -> Failure {
        Failure::refused(format!("Device {} could not be started; make another one", self.name))
    }

    /// Serves the front end at the other end of a stream socket, on threads of its own. Of a socket that listens
    /// the first connection is served.
    ///
    /// # Errors
    /// EBUSY: another front end is being served, or the device belongs to a machine. Or no descriptors or threads.
    pub fn serve(&self, socket: OwnedFd) -> Result<()> {
        let mut place = self.place();
        if let Some(core) = place.take_core() {
            let shell = Shell::new(&self.name, core, Arc::new(self.reporter.clone())).map_err(|error| {
                Failure::refused(format!("Device {} cannot be started: {}", self.name, chain(&error)))
            })?;
            *place = Place::Served { shell: Arc::new(shell), conversation: None };
        }
        let (shell, conversation) = match &mut *place {
            Place::Served { shell, conversation } => (shell, conversation),
            Place::Plugged(_) => return Err(self.busy("belongs to a machine")),
            Place::Loose(_) | Place::Spent => return Err(self.spent()),
        };
        if conversation.as_ref().is_some_and(|other| !other.is_over()) {
            return Err(self.busy("has a front end"));
        }
        if let Some(former) = conversation.take() {
            former.end();
        }
        let begun = Conversation::begin(&self.name, socket, Arc::clone(shell), self.reporter.clone());
        *conversation = Some(begun.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Failure::new(format!("Device {} cannot be served", self.name), errno)
        })?);
        Ok(())
    }

    /// The device behind registers, for a machine: as after power-on, and without guest memory. Whoever takes it
    /// out of the machine calls [`Self::unplugged`], or [`MmioDevice::release`], and drops its reference.
    ///
    /// # Errors
    /// EBUSY: a machine has it, or it is served. Or no descriptors or threads.
    pub fn plug(&self) -> Result<Arc<MmioDevice>> {
        let mut place = self.place();
        if let Some(core) = place.take_core() {
            let device = MmioDevice::new(&self.name, core, Arc::new(self.reporter.clone()));
            let device = device.map_err(|error| {
                Failure::refused(format!("Device {} cannot be started: {error}", self.name))
            })?;
            let device = Arc::new(device);
            *place = Place::Plugged(Arc::clone(&device));
            return Ok(device);
        }
        match &*place {
            Place::Plugged(device) if Arc::strong_count(device) == 1 => {
                device.release();
                Ok(Arc::clone(device))
            }
            Place::Plugged(_) => Err(self.busy("is plugged into a machine")),
            Place::Served { .. } => Err(self.busy("is served over vhost-user")),
            Place::Loose(_) | Place::Spent => Err(self.spent()),
        }
    }

    /// The machine has taken it out: the device comes to rest, is reset and lets go of guest memory. It can be
    /// plugged again when the machine has dropped its reference.
    pub fn unplugged(&self) {
        if let Place::Plugged(device) = &*self.place() {
            device.release();
        }
    }

    /// The device's counters as they are now.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = (self.counters)();
        if let Place::Plugged(device) = &*self.place() {
            counters.push(("refused_accesses", device.refusals()));
        }
        counters
    }

    /// What can be changed.
    pub fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The conversation ends while the device can still be drained.
        let place = self.place.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Place::Served { conversation, .. } = place
            && let Some(conversation) = conversation.take()
        {
            conversation.end();
        }
    }
}

#[cfg(test)]
mod tests;
