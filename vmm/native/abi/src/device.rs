//! A device as its owner on the other side of the border has it: a core with its threads, its counters, and
//! the conversation with one front end.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use strato_jail::Role;
use strato_plumbing::{Failure, Result};
use strato_vhost_user::{Observer, Shell};
use strato_virtio::thread::spawn;
use strato_virtio::{DeviceCore, DeviceFault, WorkerEnd, panic_text};

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

/// The socket that a conversation stands on: first one that listens perhaps, then the connection.
struct Line {
    stream: UnixStream,
    ended: bool,
}

struct Conversation {
    line: Arc<Mutex<Line>>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Conversation {
    /// Ends it: the device comes to rest, and its thread is waited for.
    fn end(self) {
        {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            line.ended = true;
            // Fails when the front end has gone already; then the thread ends anyway. One that listens wakes up.
            let _ = line.stream.shutdown(Shutdown::Both);
        }
        // Its panics are caught and reported inside.
        let _ = self.thread.join();
    }
}

/// One device. Dropping it ends the conversation, drains the device and joins its threads.
pub struct Device {
    name: String,
    reporter: Reporter,
    counters: Counters,
    control: Control,
    // Before the shell: the conversation ends while the device can still be drained.
    conversation: Mutex<Option<Conversation>>,
    shell: Arc<Shell>,
}

impl Device {
    /// Starts the device's thread. No front end is served yet.
    ///
    /// # Errors
    /// No descriptors or threads.
    pub fn new(name: &str, parts: Parts, reporter: Reporter) -> Result<Self> {
        let shell = Shell::new(name, parts.core, Arc::new(reporter.clone())).map_err(|error| {
            Failure::refused(format!("Device {name} cannot be started: {}", chain(&error)))
        })?;
        Ok(Self {
            name: name.to_owned(),
            reporter,
            counters: parts.counters,
            control: parts.control,
            conversation: Mutex::default(),
            shell: Arc::new(shell),
        })
    }

    /// Serves the front end at the other end of a stream socket, on a thread of its own. Of a socket that
    /// listens the first connection is served.
    ///
    /// # Errors
    /// EBUSY: another front end is being served.
    pub fn serve(&self, socket: OwnedFd) -> Result<()> {
        let mut place = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        match place.take() {
            Some(other) if !other.over.load(Ordering::Acquire) => {
                *place = Some(other);
                return Err(Failure::new(format!("Device {} has a front end", self.name), libc::EBUSY));
            }
            Some(former) => former.end(),
            None => {}
        }
        let failed = |error: io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Failure::new(format!("Device {} cannot be served", self.name), errno)
        };
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).map_err(failed)?;
        let line = Arc::new(Mutex::new(Line { stream, ended: false }));
        let theirs = Arc::clone(&line);
        let (shell, reporter) = (Arc::clone(&self.shell), self.reporter.clone());
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        let thread = spawn(Some(Role::Service), &thread_name(&self.name), move || {
            let (kind, text) = converse(&shell, &reporter, &theirs);
            // Before it is told: whoever hears of it may serve the next front end at once.
            flag.store(true, Ordering::Release);
            reporter.push(kind, &text);
        });
        *place = Some(Conversation { line, over, thread: thread.map_err(failed)? });
        Ok(())
    }

    /// The device's counters as they are now.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        (self.counters)()
    }

    /// What can be changed.
    pub fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let conversation = self.conversation.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(conversation) = conversation.take() {
            conversation.end();
        }
    }
}

/// The device's own thread has its name; this one is to be told from it within what the kernel shows.
fn thread_name(device: &str) -> String {
    format!("vu-{device}")
}

/// The connection: the socket itself, or the first that comes to it.
fn connected(line: &Mutex<Line>) -> io::Result<UnixStream> {
    let socket = line.lock().unwrap_or_else(PoisonError::into_inner).stream.try_clone()?;
    if !listens(&socket)? {
        return Ok(socket);
    }
    let (stream, _) = UnixListener::from(OwnedFd::from(socket)).accept()?;
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    if line.ended {
        return Err(io::ErrorKind::Interrupted.into());
    }
    // The listener goes: nobody else is to connect.
    line.stream = stream.try_clone()?;
    Ok(stream)
}

fn listens(socket: &UnixStream) -> io::Result<bool> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: pointer and length are those of `value`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &mut len,
        )
    };
    if outcome == 0 { Ok(value != 0) } else { Err(io::Error::last_os_error()) }
}

fn converse(shell: &Shell, reporter: &Reporter, line: &Mutex<Line>) -> (EventKind, String) {
    let both = connected(line).and_then(|stream| Ok((stream.try_clone()?, stream)));
    let (served, stream) = match both {
        Ok(both) => both,
        Err(error) if line.lock().unwrap_or_else(PoisonError::into_inner).ended => {
            return (EventKind::FrontEndGone, format!("Front end has not come: {error}"));
        }
        Err(error) => return (EventKind::Lost, format!("Front end cannot be served: {error}")),
    };
    let mut refused = |what: &dyn Display| reporter.push(EventKind::Refused, &what.to_string());
    let outcome = catch_unwind(AssertUnwindSafe(|| shell.serve(served, &mut refused)));
    // The owner keeps a descriptor of the same socket: without this a front end would wait for ever.
    let _ = stream.shutdown(Shutdown::Both);
    match outcome {
        Ok(Ok(())) => (EventKind::FrontEndGone, "Front end has gone".to_owned()),
        Ok(Err(error)) => (EventKind::Lost, chain(&error)),
        Err(panic) => (EventKind::Panicked, panic_text(panic.as_ref())),
    }
}

#[cfg(test)]
mod tests;
