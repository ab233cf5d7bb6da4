//! What can be changed while the device runs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    size: Mutex<Option<(u16, u16)>>,
}

/// The handle to a console in use; works from any thread and after the device is gone.
#[derive(Clone, Debug)]
pub struct ConsoleControl {
    shared: Arc<Shared>,
}

impl ConsoleControl {
    /// # Errors
    /// No descriptor to be had.
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { shared: Arc::new(Shared { wake, size: Mutex::default() }) })
    }

    /// Tells the guest the size of the terminal behind the first port.
    ///
    /// # Errors
    /// The device thread cannot be told.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        *self.shared.size.lock().unwrap_or_else(PoisonError::into_inner) = Some((columns, rows));
        self.shared.wake.write(1)
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.shared.wake
    }

    /// The newest size since the last call.
    pub(super) fn take(&self) -> Option<(u16, u16)> {
        // Before the size is taken, so that none is left without a wake-up.
        let _ = self.shared.wake.read();
        self.shared.size.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
