//! A share and its end. Every node and every handle holds a [`Live`] of its share; when the share is
//! removed it is closed first (nothing new can come), then whoever removes it waits until the last is gone.

use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::CachePolicy;
use super::sys::errno;
use crate::fs::backend::NodeId;

/// See [`Share::expects_known`].
const HINT_RANGE: i32 = 16;

#[derive(Debug)]
pub(super) struct Share {
    /// Never used twice; part of every node's identity.
    pub serial: u64,
    /// The share's own folder; it stays known as long as the share lives.
    pub root: NodeId,
    pub cache: CachePolicy,
    pub readonly: bool,
    pub direct_io: bool,
    closed: AtomicBool,
    live: AtomicUsize,
    changed: (Mutex<()>, Condvar),
    hint: AtomicI32,
}

impl Share {
    pub(super) fn new(
        serial: u64,
        root: NodeId,
        cache: CachePolicy,
        readonly: bool,
        direct_io: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            serial,
            root,
            cache,
            readonly,
            direct_io,
            closed: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            changed: (Mutex::new(()), Condvar::new()),
            hint: AtomicI32::new(0),
        })
    }

    /// No node and no handle may be added any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits until the last node and handle have closed their descriptors.
    pub(super) fn wait_until_unused(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let (lock, condition) = &self.changed;
        let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.live.load(Ordering::SeqCst) != 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(errno(libc::ETIMEDOUT));
            }
            guard = condition.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Whether look-ups lately met files that were known already: then asking for the attributes by name
    /// saves opening and closing. Only a guess about cost, like a branch predictor.
    pub(super) fn expects_known(&self) -> bool {
        self.hint.load(Ordering::Relaxed) > 0
    }

    pub(super) fn learn(&self, known: bool) {
        let hint = self.hint.load(Ordering::Relaxed);
        let next = if known { hint + 1 } else { hint - 1 }.clamp(-HINT_RANGE, HINT_RANGE);
        if next != hint {
            self.hint.store(next, Ordering::Relaxed);
        }
    }
}

/// Keeps a share from being unused. Must be dropped after the descriptor that it stands for: the last field.
#[derive(Debug)]
pub(super) struct Live(Arc<Share>);

impl Live {
    pub(super) fn new(share: &Arc<Share>) -> Self {
        share.live.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(share))
    }
}

impl Deref for Live {
    type Target = Arc<Share>;

    fn deref(&self) -> &Arc<Share> {
        &self.0
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let last = self.0.live.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.0.is_closed() {
            // With the lock held, the one who waits is either before its check or already waiting.
            let _guard = self.0.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.changed.1.notify_all();
        }
    }
}
