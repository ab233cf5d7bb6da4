//! What vCPUs count: exits to this program by kind, and accesses that nobody answered.
//!
//! Each vCPU has counters of its own, on cache lines of their own, and is their only writer; they are added up when
//! somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted, in the order in which it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// KVM_EXIT_IO, a port read.
    IoIn,
    /// KVM_EXIT_IO, a port written.
    IoOut,
    /// KVM_EXIT_MMIO, a read.
    MmioRead,
    /// KVM_EXIT_MMIO, a write.
    MmioWrite,
    /// KVM_RUN was interrupted: somebody wanted the vCPU to stop.
    Interrupted,
    /// A vCPU that waits for its start-up message looked around (EAGAIN).
    Again,
    /// Any other exit.
    Other,
    /// A read that nobody answered; counted as an exit as well.
    UnknownRead,
    /// A write that nobody took; counted as an exit as well.
    UnknownWrite,
}

const NAMES: [&str; 9] = [
    "exits_io_in",
    "exits_io_out",
    "exits_mmio_read",
    "exits_mmio_write",
    "exits_interrupted",
    "exits_again",
    "exits_other",
    "unknown_reads",
    "unknown_writes",
];

/// The counters of one vCPU.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    values: [AtomicU64; NAMES.len()],
}

impl Counters {
    /// Counts one more. On the vCPU's own thread only: there is one writer, so nothing has to be locked.
    pub fn count(&self, what: Count) {
        if let Some(value) = self.values.get(what as usize) {
            value.store(value.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// The value of one counter.
    pub fn get(&self, what: Count) -> u64 {
        self.values.get(what as usize).map_or(0, |value| value.load(Ordering::Relaxed))
    }
}

/// The counters of all vCPUs, added up, by name.
pub fn sum<'a>(vcpus: impl Iterator<Item = &'a Counters>) -> Vec<(&'static str, u64)> {
    let mut totals = NAMES.map(|name| (name, 0u64));
    for counters in vcpus {
        for ((_, total), value) in totals.iter_mut().zip(&counters.values) {
            *total = total.wrapping_add(value.load(Ordering::Relaxed));
        }
    }
    totals.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_vcpus_are_added_up_by_name() {
        let vcpus = [Counters::default(), Counters::default()];
        vcpus[0].count(Count::IoIn);
        vcpus[0].count(Count::UnknownWrite);
        vcpus[1].count(Count::UnknownWrite);
        assert_eq!(vcpus[1].get(Count::UnknownWrite), 1);
        let totals = sum(vcpus.iter());
        assert_eq!(totals.len(), NAMES.len());
        assert_eq!(totals[0], ("exits_io_in", 1));
        assert_eq!(totals[8], ("unknown_writes", 2));
        assert_eq!(totals.iter().map(|(_, value)| value).sum::<u64>(), 3);
    }

    #[test]
    fn every_kind_has_its_name() {
        assert_eq!(Count::UnknownWrite as usize, NAMES.len() - 1);
    }
}
