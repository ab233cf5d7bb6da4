//! Events on their way to Python: a queue and the eventfd that tells of it.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use strato_plumbing::{Result, check};

/// What has happened to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// The source ended and everything read has been written.
    SrcEof = 1,
    /// The limit has been reached.
    Done = 2,
    /// The destination failed.
    DstError = 3,
    /// The source failed.
    SrcError = 4,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The stream's tag.
    pub tag: u64,
    /// The stream's handle.
    pub handle: u64,
    /// Bytes moved until then.
    pub bytes: u64,
    /// What happened.
    pub kind: EventKind,
    /// A positive errno, or 0.
    pub errno: i32,
}

/// A counter in the kernel that can be polled.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Makes one, non-blocking.
    pub fn new() -> Result<Self> {
        // SAFETY: eventfd takes integers.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check(raw, || "Cannot make an eventfd".into())?;
        // SAFETY: eventfd returned `raw` just now; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Makes it readable. Can fail only at a count of 2^64 - 2, where it is readable anyway.
    pub fn set(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are readable at `one`.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Makes it unreadable (EAGAIN: it was).
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes are writable at `count`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Bounded by the streams: each puts in at most one DST_ERROR and one final event.
#[derive(Debug)]
pub struct EventQueue {
    queue: Mutex<VecDeque<Event>>,
    fd: EventFd,
}

impl EventQueue {
    /// An empty queue.
    pub fn new() -> Result<Self> {
        Ok(Self { queue: Mutex::new(VecDeque::new()), fd: EventFd::new()? })
    }

    /// The descriptor that is readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Appends and signals.
    pub fn push(&self, event: Event) {
        let mut queue = self.locked();
        queue.push_back(event);
        self.fd.set();
    }

    /// Takes the oldest `capacity` events.
    pub fn take(&self, capacity: usize) -> Vec<Event> {
        let mut queue = self.locked();
        let count = capacity.min(queue.len());
        let taken = queue.drain(..count).collect();
        self.settle(&mut queue);
        taken
    }

    /// Drops the waiting events of one stream.
    pub fn forget(&self, handle: u64) {
        let mut queue = self.locked();
        queue.retain(|event| event.handle != handle);
        self.settle(&mut queue);
    }

    /// Under the lock, so that the descriptor's state always matches the queue.
    fn settle(&self, queue: &mut VecDeque<Event>) {
        if queue.is_empty() {
            self.fd.clear();
            queue.shrink_to(16);
        }
    }

    /// No code panics while it holds the lock, and a queue of plain values is never half-changed.
    fn locked(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
