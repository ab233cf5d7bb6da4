//! What the device's thread has to say to vCPUs, without a lock: the interrupt, that the configuration changed,
//! that the device needs a reset.
//!
//! **No event is lost on an edge.** The bit in InterruptStatus is set before the eventfd is written, so whoever is
//! interrupted finds it. A driver may acknowledge before it looks at its queues, as Linux does, or after it has
//! handled the interrupt, as virtio 1.2 (4.2.3.4) says; in the second order an event that comes between the
//! reading of InterruptStatus and the acknowledgement would go with a plain bit, and the interrupt that was sent
//! for it would find nothing. So an event whose bit is set already is remembered as one more, until the driver
//! reads InterruptStatus: an acknowledgement clears the bit only for what the driver can have seen.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use strato_virtio::{DeviceFault, Notification, Notifier, Observer};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bits of InterruptStatus (virtio 1.2, 4.2.2).
pub(crate) const USED_BUFFER: u32 = 1 << 0;
pub(crate) const CONFIG_CHANGE: u32 = 1 << 1;
const EVENTS: u32 = USED_BUFFER | CONFIG_CHANGE;
/// So far above a bit is "once more, since the driver has read InterruptStatus".
const AGAIN: u32 = 8;

/// Shared between the shell and the device's thread. Bits and flags are set on that thread; vCPUs acknowledge.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupts: AtomicU32,
    line: EventFd,
    /// The driver has set DRIVER_OK. Before that nobody listens, and what happens waits.
    live: AtomicBool,
    needs_reset: AtomicBool,
    /// The device's thread has ended; no reset helps.
    lost: AtomicBool,
    /// ConfigGeneration: how often the device has changed its configuration.
    changes: AtomicU32,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupts: AtomicU32::new(0),
            line: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            live: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            changes: AtomicU32::new(0),
        })
    }

    /// The eventfd that is written for every interrupt.
    pub(crate) fn line(&self) -> &EventFd {
        &self.line
    }

    /// InterruptStatus, read by the driver.
    pub(crate) fn read_interrupts(&self) -> u32 {
        let mut bits = self.interrupts.load(Ordering::Acquire);
        if bits & EVENTS << AGAIN != 0 {
            bits = self.interrupts.fetch_and(EVENTS, Ordering::AcqRel);
        }
        bits & EVENTS
    }

    /// The driver acknowledges `events`.
    pub(crate) fn acknowledge(&self, events: u32) {
        let events = events & EVENTS;
        self.update(|bits| {
            let again = bits >> AGAIN & events;
            bits & !(events | events << AGAIN) | again
        });
    }

    fn raise(&self, event: u32) {
        self.update(|bits| bits | event | (bits & event) << AGAIN);
        if self.live.load(Ordering::Acquire) {
            self.write_line();
        }
    }

    fn update(&self, change: impl Fn(u32) -> u32) {
        // Never an error: the closure always has a value.
        let _ = self.interrupts.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| Some(change(bits)));
    }

    fn write_line(&self) {
        // Fails only at a count of 2^64 - 2, where an interrupt is on its way anyway.
        let _ = self.line.write(1);
    }

    /// The driver has set DRIVER_OK: it hears from now on, and of what it has missed. On the device's thread.
    pub(crate) fn go_live(&self) {
        self.live.store(true, Ordering::Release);
        if self.interrupts.load(Ordering::Acquire) & EVENTS != 0 {
            self.write_line();
        }
    }

    /// The device was reset. On its thread, so that nothing of the former driver comes later.
    pub(crate) fn reset(&self) {
        self.live.store(false, Ordering::Release);
        self.interrupts.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    /// The device stands still until a reset.
    pub(crate) fn break_down(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }

    /// The device has no thread any more. On any thread, as often as it is found out.
    pub(crate) fn lose(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            self.raise(CONFIG_CHANGE);
        }
    }

    /// Whether the status register has DEVICE_NEEDS_RESET.
    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire) || self.lost.load(Ordering::Acquire)
    }

    /// How often the configuration has changed.
    pub(crate) fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// Bits and count for saved state.
    pub(crate) fn save(&self) -> (u32, u32) {
        (self.interrupts.load(Ordering::Acquire), self.changes())
    }

    /// Whether [`Self::save`] can have given these bits.
    pub(crate) fn possible(bits: u32) -> bool {
        let again = bits >> AGAIN & EVENTS;
        bits & !(EVENTS | EVENTS << AGAIN) == 0 && bits & again == again
    }

    /// Takes up saved state, after a reset. On the device's thread.
    pub(crate) fn restore(&self, bits: u32, changes: u32) {
        self.interrupts.store(bits, Ordering::Release);
        self.changes.store(changes, Ordering::Release);
    }
}

/// The way from the core to the signals.
pub(crate) struct SignalNotifier {
    pub(crate) signals: Arc<Signals>,
    pub(crate) observer: Arc<dyn Observer>,
}

impl Notifier for SignalNotifier {
    fn notify(&self, what: Notification) {
        match what {
            Notification::Queue(_) => self.signals.raise(USED_BUFFER),
            Notification::Config => {
                self.signals.changes.fetch_add(1, Ordering::AcqRel);
                self.signals.raise(CONFIG_CHANGE);
                self.observer.config_changed();
            }
            Notification::NeedsReset => self.signals.break_down(),
        }
    }

    fn faulted(&self, fault: &DeviceFault) {
        self.observer.faulted(fault);
    }

    fn backend_failed(&self, error: &io::Error) {
        self.observer.backend_failed(error);
    }
}
