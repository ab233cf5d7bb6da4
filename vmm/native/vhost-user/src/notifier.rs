//! Notifications to the driver: the call and error eventfds and the channel that the front end gave.
#![expect(unsafe_code, reason = "descriptors")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strato_virtio::{DeviceFault, Notification, Notifier, Observer};

use crate::channel::send_config_change;

/// A descriptor that the front end waits on.
#[derive(Debug)]
struct Line {
    file: File,
    /// Writing may wait: the front end did not ask for the opposite, and its descriptor stays as it is.
    waits: bool,
}

impl Line {
    fn new(file: File) -> Self {
        // SAFETY: no pointers are passed.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        Self { file, waits: flags & libc::O_NONBLOCK == 0 }
    }

    fn writable(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd, which is ours.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    fn signal(&self) {
        if !self.waits || self.writable() {
            // Full means that the front end has a wake-up coming; any other failure is the front end's loss.
            let _ = (&self.file).write(&1u64.to_ne_bytes());
        }
    }
}

#[derive(Debug, Default)]
struct Lines {
    call: Option<Line>,
    error: Option<Line>,
}

/// Shared between the session, which sets the descriptors, and the device thread, which writes to them.
#[derive(Clone)]
pub(crate) struct CallNotifier {
    queues: Arc<Vec<Mutex<Lines>>>,
    channel: Arc<Mutex<Option<OwnedFd>>>,
    observer: Arc<dyn Observer>,
}

impl CallNotifier {
    pub(crate) fn new(queues: usize, observer: Arc<dyn Observer>) -> Self {
        let queues = Arc::new((0..queues).map(|_| Mutex::default()).collect());
        Self { queues, channel: Arc::default(), observer }
    }

    fn lines(&self, queue: usize) -> Option<MutexGuard<'_, Lines>> {
        // A descriptor is whole or not there: poison means nothing here.
        self.queues.get(queue).map(|lines| lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_call(&self, queue: usize, call: Option<File>) {
        if let Some(mut lines) = self.lines(queue) {
            lines.call = call.map(Line::new);
        }
    }

    pub(crate) fn set_error(&self, queue: usize, error: Option<File>) {
        if let Some(mut lines) = self.lines(queue) {
            lines.error = error.map(Line::new);
        }
    }

    fn channel(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // As for lines.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_channel(&self, channel: Option<OwnedFd>) {
        *self.channel() = channel;
    }

    pub(crate) fn clear(&self) {
        self.set_channel(None);
        for queue in 0..self.queues.len() {
            self.set_call(queue, None);
            self.set_error(queue, None);
        }
    }
}

impl Notifier for CallNotifier {
    fn notify(&self, what: Notification) {
        match what {
            Notification::Queue(queue) => {
                if let Some(lines) = self.lines(usize::from(queue)) {
                    lines.call.iter().for_each(Line::signal);
                }
            }
            // The protocol has no status word to set; the error lines are what it has.
            Notification::NeedsReset => {
                for queue in 0..self.queues.len() {
                    if let Some(lines) = self.lines(queue) {
                        lines.error.iter().for_each(Line::signal);
                    }
                }
            }
            Notification::Config => {
                let mut channel = self.channel();
                if channel.as_ref().is_some_and(|socket| send_config_change(socket).is_err()) {
                    *channel = None;
                }
                drop(channel);
                self.observer.config_changed();
            }
        }
    }

    fn faulted(&self, fault: &DeviceFault) {
        self.observer.faulted(fault);
    }

    fn backend_failed(&self, error: &std::io::Error) {
        self.observer.backend_failed(error);
    }
}
