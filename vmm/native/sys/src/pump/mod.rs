//! The byte pump: one thread that moves bytes between pairs of descriptors.
//!
//! The shim has one pump for all stdio streams of its containers. The pump's thread alone owns the streams;
//! every call is a command to it and waits for its answer, so nothing is locked while bytes move, and what a
//! call has reported holds. All input and output is non-blocking: a client that never reads costs nothing and
//! holds nothing up, and no descriptor's lock is held while waiting (a blocking splice into a fifo puts the
//! fifo's reader into D state).
//!
//! Fork: the thread does not exist in a forked child, so every call there fails with EOWNERDEAD.

mod descriptor;
mod engine;
mod events;
mod scratch;
mod stream;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;

use strato_plumbing::{Failure, Result};

use crate::pump::engine::{Answer, Command, Engine, Waker};
use crate::pump::events::EventQueue;
pub use crate::pump::events::{Event, EventKind};
use crate::pump::stream::Stream;
pub use crate::pump::stream::{State, Stats};

/// The thread's stack; its largest frame holds an epoll_event array of 1.5 KiB.
const STACK_BYTES: usize = 128 * 1024;

/// What to move, from where to where. The descriptors stay the caller's.
#[derive(Debug, Clone, Copy)]
pub struct StreamConfig {
    /// Where to read.
    pub src_fd: RawFd,
    /// Where to write.
    pub dst_fd: RawFd,
    /// Comes back in events.
    pub tag: u64,
    /// Finish after so many bytes.
    pub limit: Option<u64>,
    /// After an error of the destination read on, to nowhere.
    pub keep_on_dst_error: bool,
    /// Close the destination when the stream ends, not only when it is removed.
    pub close_dst: bool,
}

/// A running pump. Dropping it ends the thread and closes every stream's descriptors.
#[derive(Debug)]
pub struct Pump {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    events: Arc<EventQueue>,
    thread: Option<JoinHandle<()>>,
    owner: u32,
}

impl Pump {
    /// Starts the thread.
    ///
    /// # Errors
    /// When descriptors or threads run out.
    pub fn start() -> Result<Self> {
        let events = Arc::new(EventQueue::new()?);
        let (commands, inbox) = channel();
        let engine = Engine::new(inbox, Arc::clone(&events))?;
        let waker = engine.waker();
        // Signals belong to the interpreter's main thread, and a SIGPIPE of ours to nobody.
        let thread = with_signals_blocked(|| {
            std::thread::Builder::new()
                .name("strato-pump".into())
                .stack_size(STACK_BYTES)
                .spawn(move || engine.run())
        });
        let thread = thread.map_err(|error| {
            Failure::new("Cannot start the pump's thread", error.raw_os_error().unwrap_or(libc::EAGAIN))
        })?;
        Ok(Self { commands, waker, events, thread: Some(thread), owner: std::process::id() })
    }

    /// The eventfd that is readable while events wait.
    pub fn event_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// Duplicates both descriptors and starts to move bytes.
    ///
    /// # Errors
    /// EBADF, EMFILE, or EINVAL for a descriptor of the wrong direction or kind.
    pub fn add(&self, config: &StreamConfig) -> Result<u64> {
        self.check_owner()?;
        let stream = Stream::new(config)?;
        self.ask(|answer| Command::Add(Box::new(stream), answer))
    }

    /// Finishes the stream after `total` bytes in all; at once when they have passed already. A stream that
    /// has ended already stays as it is.
    ///
    /// # Errors
    /// ENOENT for an unknown handle.
    pub fn set_limit(&self, handle: u64, total: u64) -> Result<()> {
        self.ask(|answer| Command::SetLimit(handle, total, answer))
    }

    /// How far the stream has come.
    ///
    /// # Errors
    /// ENOENT for an unknown handle.
    pub fn stats(&self, handle: u64) -> Result<Stats> {
        self.ask(|answer| Command::Stats(handle, answer))
    }

    /// Stops the stream, closes its descriptors and forgets its events.
    ///
    /// # Errors
    /// ENOENT for an unknown handle.
    pub fn remove(&self, handle: u64) -> Result<()> {
        self.ask(|answer| Command::Remove(handle, answer))
    }

    /// Takes up to `capacity` events, oldest first.
    ///
    /// # Errors
    /// EOWNERDEAD in a forked child.
    pub fn take_events(&self, capacity: usize) -> Result<Vec<Event>> {
        self.check_owner()?;
        Ok(self.events.take(capacity))
    }

    fn check_owner(&self) -> Result<()> {
        if std::process::id() == self.owner {
            return Ok(());
        }
        Err(Failure::new(
            format!("This pump belongs to process {}; a forked child has none", self.owner),
            libc::EOWNERDEAD,
        ))
    }

    fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T> {
        self.check_owner()?;
        let dead = || Failure::new("The pump's thread has died", libc::ENOTRECOVERABLE);
        let (answer, reply): (Answer<T>, Receiver<Result<T>>) = sync_channel(1);
        self.commands.send(command(answer)).map_err(|_| dead())?;
        self.waker.wake();
        reply.recv().map_err(|_| dead())?
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.check_owner().is_err() {
            // In a forked child there is no thread to join; the parent's streams are not ours to end.
            std::mem::forget(thread);
            return;
        }
        if self.commands.send(Command::Stop).is_ok() {
            self.waker.wake();
        }
        drop(thread.join());
    }
}

/// Runs `work` (which starts a thread) with every signal blocked, so that the new thread has them blocked.
fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: sigset_t is a plain C structure for which all-zero is valid.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a live sigset_t.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both sets are live.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    let outcome = work();
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    outcome
}

impl AsRawFd for Pump {
    fn as_raw_fd(&self) -> RawFd {
        self.event_fd()
    }
}

#[cfg(test)]
mod tests;
