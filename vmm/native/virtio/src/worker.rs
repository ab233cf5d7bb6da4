//! The thread of a device. It owns the [`DeviceHost`]; others send it commands and wait for the answer.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use strato_jail::Role;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::events::{COMMAND_TOKEN, Interest};
use crate::host::DeviceHost;
use crate::thread::spawn;

type Command = Box<dyn FnOnce(&mut DeviceHost) + Send>;

/// The worker thread is gone: it could not go on, and its device with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerError;

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Device thread has ended")
    }
}

impl std::error::Error for WorkerError {}

/// How a device thread came to its end.
#[derive(Debug)]
pub enum WorkerEnd {
    /// It was told to.
    Stopped,
    /// Its epoll descriptor failed.
    Failed(io::Error),
    /// A bug: the text of the panic.
    Panicked(String),
}

/// The words of a caught panic.
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words").to_owned()
}

/// A running device thread. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub struct Worker {
    commands: Option<Sender<Command>>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread `name` (at most 15 bytes are shown) for `host`.
    ///
    /// # Errors
    /// No descriptor or thread to be had.
    pub fn start(name: &str, host: DeviceHost) -> io::Result<Self> {
        Self::start_watched(name, host, |_| ())
    }

    /// As [`Self::start`]; `ended` is called on the thread when nothing more comes from it. A panic of the
    /// device goes no further than that.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_watched(
        name: &str,
        host: DeviceHost,
        ended: impl FnOnce(WorkerEnd) + Send + 'static,
    ) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let woken = wake.try_clone()?;
        host.events().add(woken.as_raw_fd(), COMMAND_TOKEN, Interest::Readable)?;
        let (commands, inbox) = channel();
        let role = Role::of_device(host.info().device_type);
        let thread = spawn(role, name, move || {
            // Nothing of the host is looked at afterwards: it is gone with everything that it held.
            let end = catch_unwind(AssertUnwindSafe(|| serve(host, &woken, inbox)));
            ended(end.unwrap_or_else(|payload| WorkerEnd::Panicked(panic_text(payload.as_ref()))));
        })?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Runs `call` on the device thread and returns what it returned.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut DeviceHost) -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        self.ask(call)?.recv().map_err(|_| WorkerError)
    }

    /// As [`Self::call`], but waits no longer than until `deadline`. None: the thread is still at something else; it
    /// will come to this call, and to those that are made later after it.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn call_before<T: Send + 'static>(
        &self,
        deadline: Instant,
        call: impl FnOnce(&mut DeviceHost) -> T + Send + 'static,
    ) -> Result<Option<T>, WorkerError> {
        match self.ask(call)?.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError),
        }
    }

    /// As [`Self::call`], without waiting for it.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn send(&self, call: impl FnOnce(&mut DeviceHost) + Send + 'static) -> Result<(), WorkerError> {
        self.ask(call).map(|_| ())
    }

    fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut DeviceHost) -> T + Send + 'static,
    ) -> Result<Receiver<T>, WorkerError> {
        let (answer, answered) = channel();
        let command: Command = Box::new(move |host| {
            // If the asker is gone nobody misses the answer.
            let _ = answer.send(call(host));
        });
        self.commands.as_ref().ok_or(WorkerError)?.send(command).map_err(|_| WorkerError)?;
        self.wake.write(1).map_err(|_| WorkerError)?;
        Ok(answered)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A closed command channel is the order to end.
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic of the device has been reported by then; there is no more to do.
            let _ = thread.join();
        }
    }
}

/// Takes the inbox by value, so that whoever waits for an answer hears of a panic before it is reported.
fn serve(mut host: DeviceHost, woken: &EventFd, inbox: Receiver<Command>) -> WorkerEnd {
    loop {
        if let Err(error) = host.turn(-1) {
            return WorkerEnd::Failed(error);
        }
        if !host.take_commands_ready() {
            continue;
        }
        // Each command is counted once, after it was sent. Those that come meanwhile wait for the next turn: what
        // happened before a command was sent is seen before it is carried out.
        for _ in 0..woken.read().unwrap_or(0) {
            match inbox.try_recv() {
                Ok(command) => command(&mut host),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return WorkerEnd::Stopped,
            }
        }
    }
}
