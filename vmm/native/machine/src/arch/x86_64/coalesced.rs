//! Writes of the guest that KVM keeps for later, instead of leaving the guest for each (Documentation/virt/kvm/api.rst,
//! 4.116, "coalesced MMIO").
//!
//! A VM has one page for them: a ring that its vCPUs fill one after the other (virt/kvm/coalesced_mmio.c) and that
//! the descriptor of each vCPU shows. When it is full, the next write is an exit as any other, so whoever handles
//! one reads the ring first. The guest cannot reach the page itself.
#![expect(unsafe_code, reason = "a ring that KVM writes")]

use std::cell::UnsafeCell;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio};
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use strato_plumbing::{Failure, Result};

const PAGE_LEN: usize = 4096;
/// Entries of the ring: what fits behind its two indexes. One stays free, or full would look like empty.
const ENTRIES: usize = (PAGE_LEN - 8) / size_of::<kvm_coalesced_mmio>();

/// `struct kvm_coalesced_mmio_ring` of linux/kvm.h with its entries.
#[repr(C)]
struct Ring {
    /// The oldest entry. Ours to change.
    first: AtomicU32,
    /// Behind the youngest. KVM's to change.
    last: AtomicU32,
    entries: [UnsafeCell<kvm_coalesced_mmio>; ENTRIES],
}

const _: () = assert!(size_of::<Ring>() <= PAGE_LEN);

impl Ring {
    /// Hands on the address and bytes of each write, the oldest first, and returns how many there were. What comes
    /// meanwhile is left for the next time, so a guest that never stops writing holds nobody up.
    fn take(&self, mut each: impl FnMut(u64, &[u8])) -> u64 {
        let last = self.last.load(Ordering::Acquire);
        let mut first = self.first.load(Ordering::Relaxed);
        let mut count = 0;
        for _ in 0..ENTRIES {
            let Some(entry) = self.entries.get(first as usize).filter(|_| first != last) else { break };
            // SAFETY: entries are live plain numbers, and KVM leaves those alone that `first` has not passed.
            let entry = unsafe { entry.get().read_volatile() };
            each(entry.phys_addr, entry.data.get(..entry.len as usize).unwrap_or_default());
            first = (first + 1) % ENTRIES as u32;
            count += 1;
        }
        self.first.store(first, Ordering::Release);
        count
    }
}

/// The writes that KVM keeps.
pub(super) struct CoalescedWrites {
    ring: NonNull<Ring>,
}

// SAFETY: the page is mapped for the whole process, until the one owner unmaps it.
unsafe impl Send for CoalescedWrites {}

impl CoalescedWrites {
    /// From here on KVM keeps writes to the `len` addresses from `addr` on; None where it cannot. `vcpu` is any one
    /// of the VM's, which the mapping keeps open.
    ///
    /// # Errors
    /// What KVM says.
    pub(super) fn begin(vm: &VmFd, vcpu: &VcpuFd, addr: u64, len: u32) -> Result<Option<Self>> {
        if !vm.check_extension(Cap::CoalescedMmio) {
            return Ok(None);
        }
        let offset = i64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE_LEN as i64;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, in a place of the kernel's choice.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE_LEN, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), offset)
        };
        let ring = NonNull::new(page.cast()).filter(|_| page != libc::MAP_FAILED);
        let ring = ring.ok_or_else(|| Failure::last("Cannot map the writes that KVM keeps"))?;
        // An owner before anything else can fail.
        let kept = Self { ring };
        let outcome = vm.register_coalesced_mmio(IoEventAddress::Mmio(addr), len);
        outcome.map_err(|error| {
            Failure::new(format!("Cannot let KVM keep writes to {addr:#x}"), error.errno())
        })?;
        Ok(Some(kept))
    }

    /// As [`Ring::take`]. One caller at a time.
    pub(super) fn take(&mut self, each: impl FnMut(u64, &[u8])) -> u64 {
        // SAFETY: mapped as long as this lives; KVM and we share it as `Ring` says.
        unsafe { self.ring.as_ref() }.take(each)
    }
}

impl Drop for CoalescedWrites {
    fn drop(&mut self) {
        // SAFETY: this is its only owner, and the mapping has this length.
        unsafe { libc::munmap(self.ring.as_ptr().cast(), PAGE_LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(first: u32, last: u32) -> Ring {
        let entry = |index| {
            let data = [index as u8, 1, 2, 3, 4, 5, 6, 7];
            let len = if index == 3 { 9 } else { 4 };
            kvm_coalesced_mmio { phys_addr: index as u64, len, data, ..kvm_coalesced_mmio::default() }
        };
        let entries = std::array::from_fn(|index| UnsafeCell::new(entry(index)));
        Ring { first: first.into(), last: last.into(), entries }
    }

    fn taken(ring: &Ring) -> Vec<(u64, Vec<u8>)> {
        let mut all = Vec::new();
        let count = ring.take(|addr, data| all.push((addr, data.to_vec())));
        assert_eq!(count, all.len() as u64);
        all
    }

    #[test]
    fn writes_are_taken_once_in_their_order_and_around_the_end() {
        let ring = ring(168, 2);
        let expected = [168u8, 169, 0, 1].map(|index| (u64::from(index), vec![index, 1, 2, 3]));
        assert_eq!(taken(&ring), expected);
        assert_eq!(ring.first.load(Ordering::Relaxed), 2);
        assert_eq!(taken(&ring), []);
        ring.last.store(3, Ordering::Relaxed);
        assert_eq!(taken(&ring).len(), 1);
    }

    #[test]
    fn full_ring_is_taken_as_a_whole_and_what_comes_meanwhile_is_not() {
        let ring = ring(1, 0);
        let mut count = 0;
        ring.take(|_, _| {
            count += 1;
            // KVM puts as many behind it as there is room for.
            ring.last.store(count, Ordering::Relaxed);
        });
        assert_eq!(count, 169);
        assert_eq!(ring.first.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn numbers_that_kvm_never_writes_end_a_round() {
        assert_eq!(ring(3, 4).take(|_, data| assert!(data.is_empty())), 1);
        assert_eq!(ring(0, u32::MAX).take(|_, _| ()), ENTRIES as u64);
        assert_eq!(ring(u32::MAX, 0).take(|_, _| ()), 0);
    }
}
