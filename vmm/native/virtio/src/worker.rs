//! The thread of a device. It owns the [`DeviceHost`]; others send it commands and wait for the answer.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::events::{COMMAND_TOKEN, Interest};
use crate::host::DeviceHost;

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
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let woken = wake.try_clone()?;
        host.events().add(woken.as_raw_fd(), COMMAND_TOKEN, Interest::Readable)?;
        let (commands, inbox) = channel();
        let thread = Builder::new().name(name.to_owned()).spawn(move || serve(host, &woken, &inbox))?;
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
        let (answer, answered) = channel();
        let command: Command = Box::new(move |host| {
            // The asker waits for this; if it is gone nobody misses the answer.
            let _ = answer.send(call(host));
        });
        self.commands.as_ref().ok_or(WorkerError)?.send(command).map_err(|_| WorkerError)?;
        self.wake.write(1).map_err(|_| WorkerError)?;
        answered.recv().map_err(|_| WorkerError)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A closed command channel is the order to end.
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic of the device thread has been reported on stderr by then; there is no more to do.
            let _ = thread.join();
        }
    }
}

fn serve(mut host: DeviceHost, woken: &EventFd, inbox: &Receiver<Command>) {
    loop {
        if host.turn(-1).is_err() {
            return;
        }
        if !host.take_commands_ready() {
            continue;
        }
        // Emptied before the inbox is, so that no command is left behind without a wake-up.
        let _ = woken.read();
        loop {
            match inbox.try_recv() {
                Ok(command) => command(&mut host),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }
}
