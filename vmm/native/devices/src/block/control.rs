//! What can be changed while the device runs.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::size_in_sectors;
use super::queue::SECTOR;
use crate::limits::Limits;

/// Changes that the device thread has not taken up yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) sectors: Option<u64>,
    pub(super) limits: Option<Limits>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    logical: u32,
    wake: EventFd,
    changes: Mutex<Changes>,
}

/// The handle to a block device in use; works from any thread and after the device is gone.
#[derive(Clone, Debug)]
pub struct BlockControl {
    shared: Arc<Shared>,
}

impl BlockControl {
    /// # Errors
    /// No descriptor to be had.
    pub(super) fn new(file: &Arc<File>, logical: u32) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let shared = Shared { file: Arc::clone(file), logical, wake, changes: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Looks at the size of the file again and tells the driver the new one. Returns it in bytes. The caller
    /// has changed the size itself; requests beyond a smaller one fail.
    ///
    /// # Errors
    /// The file has no size.
    pub fn resize(&self) -> io::Result<u64> {
        let sectors = size_in_sectors(&self.shared.file, self.shared.logical)?;
        self.change(|changes| changes.sectors = Some(sectors))?;
        Ok(sectors * SECTOR)
    }

    /// Replaces the limits. What was saved up or is owed stays so.
    ///
    /// # Errors
    /// The device thread cannot be told.
    pub fn set_limits(&self, limits: Limits) -> io::Result<()> {
        self.change(|changes| changes.limits = Some(limits))
    }

    fn change(&self, change: impl FnOnce(&mut Changes)) -> io::Result<()> {
        change(&mut self.shared.changes.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.write(1)
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.shared.wake
    }

    /// What has changed since the last call.
    pub(super) fn take(&self) -> Changes {
        // Before the changes are taken, so that none is left without a wake-up.
        let _ = self.shared.wake.read();
        std::mem::take(&mut self.shared.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
