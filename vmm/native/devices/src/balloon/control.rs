//! What the host wants of a balloon, and what it knows of it.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::metrics::BalloonMetrics;
use super::queue::PAGE;

/// Statistics that have a tag: 0 to 9 (virtio 1.2, 5.5.6.4) and those that Linux has added since, up to 15
/// (VIRTIO_BALLOON_S_NR).
pub const STATS: usize = 16;

/// A balloon as it is now. Sizes and statistics are what the guest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonInfo {
    /// Bytes that the guest is asked to give up.
    pub target: u64,
    /// Bytes that it says it has given up.
    pub actual: u64,
    /// Bytes that it has reported as free so far, each time anew.
    pub reported: u64,
    /// Bytes that went back to the host so far, whatever for.
    pub discarded: u64,
    /// Its statistics by tag, as far as it has told them.
    pub stats: [Option<u64>; STATS],
    /// When it did.
    pub updated: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct State {
    target: u32,
    actual: u32,
    stats: [Option<u64>; STATS],
    updated: Option<SystemTime>,
}

/// Hears that the guest says of another size that it has given up.
pub type OnActual = Box<dyn Fn() + Send>;

struct Shared {
    wake: EventFd,
    state: Mutex<State>,
    metrics: Arc<BalloonMetrics>,
    on_actual: Mutex<Option<OnActual>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The handle to a balloon in use; works from any thread and after the device is gone.
#[derive(Clone, Debug)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

impl BalloonControl {
    /// # Errors
    /// No descriptor to be had.
    pub(super) fn new(metrics: &Arc<BalloonMetrics>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let metrics = Arc::clone(metrics);
        let shared = Shared { wake, state: Mutex::default(), metrics, on_actual: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values are never half-changed.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest to give up `bytes` of its memory in all, rounded down to pages of 4 KiB. It does so as fast
    /// and as far as it can.
    ///
    /// # Errors
    /// InvalidInput: more than 2^32 - 1 pages. Or the device thread cannot be told.
    pub fn set_target(&self, bytes: u64) -> io::Result<()> {
        self.state().target = u32::try_from(bytes / PAGE).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.shared.wake.write(1)
    }

    /// The balloon as it is now.
    pub fn info(&self) -> BalloonInfo {
        let state = self.state();
        BalloonInfo {
            target: u64::from(state.target) * PAGE,
            actual: u64::from(state.actual) * PAGE,
            reported: self.shared.metrics.reported_bytes.load(Ordering::Relaxed),
            discarded: self.shared.metrics.discarded_bytes.load(Ordering::Relaxed),
            stats: state.stats,
            updated: state.updated,
        }
    }

    /// Calls `hear` on the device's thread, whenever the guest says of another size that it has given up. It must
    /// not wait.
    pub fn on_actual(&self, hear: OnActual) {
        *self.shared.on_actual.lock().unwrap_or_else(PoisonError::into_inner) = Some(hear);
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.shared.wake
    }

    /// The newest target in pages.
    pub(super) fn take_target(&self) -> u32 {
        // Before the target is taken, so that none is left without a wake-up.
        let _ = self.shared.wake.read();
        self.state().target
    }

    /// Saved state brings what was wanted.
    pub(super) fn restore_target(&self, pages: u32) {
        self.state().target = pages;
    }

    pub(super) fn set_actual(&self, pages: u32) {
        let before = std::mem::replace(&mut self.state().actual, pages);
        if before == pages {
            return;
        }
        if let Some(hear) = self.shared.on_actual.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            hear();
        }
    }

    pub(super) fn set_stats(&self, stats: [Option<u64>; STATS]) {
        let mut state = self.state();
        state.stats = stats;
        state.updated = Some(SystemTime::now());
    }

    /// The driver is gone, and what it said with it.
    pub(super) fn forget_driver(&self) {
        let mut state = self.state();
        *state = State { target: state.target, ..State::default() };
    }
}
