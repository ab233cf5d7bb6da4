//! Notifications to the driver: the call and error eventfds that the front end gave.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strato_virtio::{DeviceFault, Notification, Notifier};

use crate::shell::Observer;

#[derive(Debug, Default)]
struct Lines {
    call: Option<File>,
    error: Option<File>,
}

/// Shared between the session, which sets the descriptors, and the device thread, which writes to them.
#[derive(Clone)]
pub(crate) struct CallNotifier {
    queues: Arc<Vec<Mutex<Lines>>>,
    observer: Arc<dyn Observer>,
}

impl CallNotifier {
    pub(crate) fn new(queues: usize, observer: Arc<dyn Observer>) -> Self {
        Self { queues: Arc::new((0..queues).map(|_| Mutex::default()).collect()), observer }
    }

    fn lines(&self, queue: usize) -> Option<MutexGuard<'_, Lines>> {
        // A descriptor is whole or not there: poison means nothing here.
        self.queues.get(queue).map(|lines| lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_call(&self, queue: usize, call: Option<File>) {
        if let Some(mut lines) = self.lines(queue) {
            lines.call = call;
        }
    }

    pub(crate) fn set_error(&self, queue: usize, error: Option<File>) {
        if let Some(mut lines) = self.lines(queue) {
            lines.error = error;
        }
    }

    pub(crate) fn clear(&self) {
        for queue in 0..self.queues.len() {
            self.set_call(queue, None);
            self.set_error(queue, None);
        }
    }
}

fn signal(line: Option<&File>) {
    if let Some(mut line) = line {
        // Full means that the front end has a wake-up coming; any other failure is the front end's loss.
        let _ = line.write(&1u64.to_ne_bytes());
    }
}

impl Notifier for CallNotifier {
    fn notify(&self, what: Notification) {
        match what {
            Notification::Queue(queue) => {
                if let Some(lines) = self.lines(usize::from(queue)) {
                    signal(lines.call.as_ref());
                }
            }
            // The protocol has no status word to set; the error lines are what it has.
            Notification::NeedsReset => {
                for queue in 0..self.queues.len() {
                    if let Some(lines) = self.lines(queue) {
                        signal(lines.error.as_ref());
                    }
                }
            }
            // Needs the back-end channel (BACKEND_REQ), which is not offered yet.
            Notification::Config => self.observer.config_changed(),
        }
    }

    fn faulted(&self, fault: &DeviceFault) {
        self.observer.faulted(fault);
    }

    fn backend_failed(&self, error: &std::io::Error) {
        self.observer.backend_failed(error);
    }
}
