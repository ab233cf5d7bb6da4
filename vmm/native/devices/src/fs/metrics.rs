//! Counters of the fs device.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::{COUNTED, OPCODE_LIMIT};

/// Counters; written by the device's threads, read by anyone.
#[derive(Debug)]
pub struct FsMetrics {
    by_opcode: [AtomicU64; OPCODE_LIMIT],
    /// Requests of a kind that is not served.
    pub unknown: AtomicU64,
    /// Requests refused before their kind counted: too short, before INIT.
    pub malformed: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Bytes that the guest read from files.
    pub read_bytes: AtomicU64,
    /// Bytes that the guest wrote to files.
    pub written_bytes: AtomicU64,
    /// Requests that went to the thread pool.
    pub pooled: AtomicU64,
    /// Times that a guest mounted.
    pub mounts: AtomicU64,
}

impl Default for FsMetrics {
    fn default() -> Self {
        Self {
            by_opcode: array::from_fn(|_| AtomicU64::new(0)),
            unknown: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            pooled: AtomicU64::new(0),
            mounts: AtomicU64::new(0),
        }
    }
}

impl FsMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn count(&self, opcode: u32) {
        let own = usize::try_from(opcode).ok().and_then(|opcode| self.by_opcode.get(opcode));
        Self::add(own.unwrap_or(&self.unknown), 1);
    }

    /// All counters by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_opcode = COUNTED.iter().map(|&(opcode, name)| {
            let counter = usize::try_from(opcode).ok().and_then(|opcode| self.by_opcode.get(opcode));
            (name, counter.map_or(0, value))
        });
        let others = [
            ("unknown_requests", value(&self.unknown)),
            ("malformed_requests", value(&self.malformed)),
            ("errors", value(&self.errors)),
            ("read_bytes", value(&self.read_bytes)),
            ("written_bytes", value(&self.written_bytes)),
            ("pooled_requests", value(&self.pooled)),
            ("mounts", value(&self.mounts)),
        ];
        by_opcode.chain(others).collect()
    }
}
