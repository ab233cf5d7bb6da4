//! Events on their way to Python: what waits, and the eventfd that tells of it.
//!
//! An event that waits absorbs later ones of the same device and kind, and counts them. So there are never more
//! of them than devices times kinds, whatever a guest does, and the end of a device always has its place.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{set_hook, take_hook};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use strato_plumbing::{Failure, Result};
use strato_virtio::panic_text;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Longest text of an event in bytes, the terminator apart.
pub const TEXT_LEN: usize = 199;

/// The tag of events that belong to the library and to no device.
pub const LIBRARY_TAG: u64 = u64::MAX;

/// Who hears of panics.
static RINGS: Mutex<Vec<Weak<EventRing>>> = Mutex::new(Vec::new());

/// Makes a panic of any thread of this library an event with [`LIBRARY_TAG`]. A device may have threads whose
/// loss nobody would notice: whoever waits for their work would wait for ever.
pub fn report_panics(ring: &Arc<EventRing>) {
    static ONCE: Once = Once::new();
    let mut rings = RINGS.lock().unwrap_or_else(PoisonError::into_inner);
    rings.retain(|ring| ring.strong_count() > 0);
    rings.push(Arc::downgrade(ring));
    ONCE.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |info| {
            report(info);
            let thread = std::thread::current();
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let words = panic_text(info.payload());
            let text =
                format!("Thread {} panicked at {place}: {words}", thread.name().unwrap_or("of Python"));
            for ring in RINGS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade)
            {
                ring.push(LIBRARY_TAG, EventKind::Panicked, &text);
            }
        }));
    });
}

/// What happened to a device or a machine. The numbers are the header's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// The driver broke the protocol; the device stands still until it is reset.
    NeedsReset = 1,
    /// The backend failed; the guest has its answer.
    BackendError = 2,
    /// The device changed its configuration space.
    ConfigChanged = 3,
    /// A request of the front end was refused.
    Refused = 4,
    /// The front end has gone; the device waits for another.
    FrontEndGone = 5,
    /// The device is lost: its thread could not go on.
    Lost = 6,
    /// The device or the machine is lost: its code panicked.
    Panicked = 7,
    /// The guest has given up another amount of memory (balloon).
    BalloonChanged = 8,
    /// The guest asked for a reset.
    GuestReset = 16,
    /// The guest switched itself off.
    GuestShutdown = 17,
    /// The guest's kernel panicked.
    GuestPanicked = 18,
    /// A vCPU met a fault that it cannot deliver.
    TripleFault = 19,
    /// A vCPU cannot go on.
    VcpuFailed = 20,
    /// The guest's kernel panicked, and its crash kernel takes over.
    CrashLoaded = 21,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The device's tag, or the machine's.
    pub tag: u64,
    /// What happened.
    pub kind: EventKind,
    /// How often, while the event waited.
    pub count: u64,
    /// The words of the first of them.
    pub text: String,
}

/// The events of all devices of a process.
#[derive(Debug)]
pub struct EventRing {
    waiting: Mutex<VecDeque<Event>>,
    fd: EventFd,
}

impl EventRing {
    /// An empty ring.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> Result<Self> {
        let fd = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|error| Failure::new("Cannot make an eventfd", error.raw_os_error().unwrap_or(0)))?;
        Ok(Self { waiting: Mutex::new(VecDeque::new()), fd })
    }

    /// The descriptor that is readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Appends an event, or counts it where its like waits already. Never waits for Python.
    pub fn push(&self, tag: u64, kind: EventKind, text: &str) {
        let mut waiting = self.locked();
        if let Some(event) = waiting.iter_mut().find(|event| event.tag == tag && event.kind == kind) {
            event.count = event.count.saturating_add(1);
            return;
        }
        let end = (0..=TEXT_LEN.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        let text = text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned();
        waiting.push_back(Event { tag, kind, count: 1, text });
        // Fails only at a count of 2^64 - 2, where it is readable anyway.
        let _ = self.fd.write(1);
    }

    /// Takes the oldest `capacity` events.
    pub fn take(&self, capacity: usize) -> Vec<Event> {
        let mut waiting = self.locked();
        let count = capacity.min(waiting.len());
        let taken = waiting.drain(..count).collect();
        if waiting.is_empty() {
            // Under the lock, so that the descriptor always tells the truth. EAGAIN: it was empty.
            let _ = self.fd.read();
        }
        taken
    }

    /// No code panics while it holds the lock, and a queue of plain values is never half-changed.
    fn locked(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(ring: &EventRing) -> bool {
        let mut poll = libc::pollfd { fd: ring.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn events_come_in_order_and_the_descriptor_tells_of_them() {
        let ring = EventRing::new().unwrap();
        assert!(!readable(&ring));
        ring.push(1, EventKind::NeedsReset, "first");
        ring.push(2, EventKind::Panicked, "second");
        assert!(readable(&ring));
        assert_eq!(ring.take(1).first().unwrap().text, "first");
        assert!(readable(&ring));
        assert_eq!(ring.take(9).first().unwrap().kind, EventKind::Panicked);
        assert!(!readable(&ring));
        assert_eq!(ring.take(9), []);
    }

    #[test]
    fn likes_are_counted_and_leave_room_for_the_end() {
        let ring = EventRing::new().unwrap();
        for _ in 0..100_000 {
            ring.push(1, EventKind::NeedsReset, "again");
        }
        ring.push(1, EventKind::Panicked, "end");
        let events = ring.take(usize::MAX);
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].count, events[1].count), (100_000, 1));
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let ring = EventRing::new().unwrap();
        ring.push(1, EventKind::Refused, &"é".repeat(300));
        assert_eq!(ring.take(1)[0].text, "é".repeat(99));
    }
}
