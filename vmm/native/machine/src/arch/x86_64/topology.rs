//! Processors, cores and the package, and how APIC ids say which is which.

use strato_plumbing::{Failure, Result};

/// 255 means all processors to a local APIC, so the highest id is 254 (Intel SDM volume 3, section 11.6.2.1).
const MAX_CPUS: u32 = 255;

/// One package of equal cores. A processor's number is its APIC id, which [`Self::new`] makes sure of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    num_cpus: u32,
    threads_per_core: u32,
}

impl Topology {
    /// # Errors
    /// Numbers that do not fit together, or for which an APIC id would not be the processor's number.
    pub fn new(num_cpus: u32, threads_per_core: u32) -> Result<Self> {
        if !(1..=MAX_CPUS).contains(&num_cpus) {
            return Err(Failure::refused(format!("Number of vCPUs {num_cpus} is not in 1 to {MAX_CPUS}")));
        }
        // The threads of a core have a field of their own in the APIC id, so other numbers leave gaps.
        if !threads_per_core.is_power_of_two() || !num_cpus.is_multiple_of(threads_per_core) {
            return Err(Failure::refused(format!(
                "Threads per core {threads_per_core} must be a power of two that divides the number of vCPUs, \
                 {num_cpus}"
            )));
        }
        Ok(Self { num_cpus, threads_per_core })
    }

    /// Processors in the package.
    pub fn num_cpus(self) -> u32 {
        self.num_cpus
    }

    /// Processors that share a core.
    pub fn threads_per_core(self) -> u32 {
        self.threads_per_core
    }

    /// Bits of the APIC id that number the threads of a core.
    pub fn thread_bits(self) -> u32 {
        bits(self.threads_per_core)
    }

    /// Bits of the APIC id that number the processors of the package.
    pub fn package_bits(self) -> u32 {
        bits(self.num_cpus)
    }

    /// The number of ids that the package takes up, which CPUID tells instead of the number of processors.
    pub fn package_ids(self) -> u32 {
        1 << self.package_bits()
    }

    /// The number of ids that its cores take up.
    pub fn core_ids(self) -> u32 {
        self.package_ids() >> self.thread_bits()
    }
}

fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_in_powers_of_two() {
        let topology = Topology::new(6, 2).unwrap();
        assert_eq!((topology.thread_bits(), topology.package_bits()), (1, 3));
        assert_eq!((topology.package_ids(), topology.core_ids()), (8, 4));
        let single = Topology::new(1, 1).unwrap();
        assert_eq!((single.thread_bits(), single.package_bits(), single.package_ids()), (0, 0, 1));
        assert_eq!(Topology::new(255, 1).unwrap().package_ids(), 256);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_by_name() {
        for (num_cpus, threads, text) in [
            (0, 1, "Number of vCPUs 0 is not in 1 to 255"),
            (256, 1, "Number of vCPUs 256 is not in 1 to 255"),
            (3, 2, "Threads per core 2 must be a power of two that divides the number of vCPUs, 3"),
            (6, 3, "Threads per core 3 must be a power of two that divides the number of vCPUs, 6"),
            (4, 0, "Threads per core 0 must be a power of two that divides the number of vCPUs, 4"),
        ] {
            assert_eq!(Topology::new(num_cpus, threads).unwrap_err().to_string(), text);
        }
    }
}
