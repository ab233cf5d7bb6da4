//! A machine as its owner has it, with a kernel of a few instructions.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use strato_devices::BucketConfig;
use strato_devices::rng::{Rng, RngConfig};
use strato_virtio::{GuestRamHandle, Unobserved};
use strato_virtio_mmio::MmioDevice;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{Ear, PATIENCE, kvm};
use super::tiny_kernel::kernel;
use crate::arch::{Boot, EntryChoice};
use crate::events::MachineEvent;
use crate::machine::{Machine, MachineConfig, PlatformConfig};
use crate::memory::{Backend, HugePages, MemoryConfig, Region};
use crate::slot::SlotConfig;

pub(super) const RAM_BYTES: u64 = 8 << 20;
/// Words for the guest to change, and for the mock driver's rings, beyond the kernel.
pub(super) const WORD: u64 = 3 << 20;
pub(super) const RINGS: u64 = 4 << 20;
pub(super) const GENERATION: u64 = 0xff000;
pub(super) const SLOT: u64 = 0xc000_0000;

pub(super) fn boot(code: &[u8]) -> Boot {
    Boot { kernel: kernel(code), initrd: None, entry: EntryChoice::Pvh, cmdline: CString::default() }
}

pub(super) fn slot(index: u32) -> SlotConfig {
    SlotConfig { index, guest_addr: SLOT + 0x1000 * u64::from(index), gsi: 6 + index }
}

pub(super) fn memory() -> MemoryConfig {
    MemoryConfig {
        backend: Backend::Anonymous,
        regions: vec![Region { guest_addr: 0, bytes: RAM_BYTES }],
        huge_pages: HugePages::Advised,
        prealloc: false,
    }
}

pub(super) fn platform() -> PlatformConfig {
    PlatformConfig {
        ged_gsi: 5,
        pvpanic_port: 0x505,
        power_port: 0x600,
        serial: None,
        tables_addr: 0xe0000,
        generation_addr: GENERATION,
    }
}

pub(super) fn rng(name: &str) -> Arc<MmioDevice> {
    let core = Rng::new(RngConfig { limit: BucketConfig { rate: 1 << 20, burst: 1 << 20 } }).unwrap();
    Arc::new(MmioDevice::new(name, Box::new(core), Arc::new(Unobserved)).unwrap())
}

/// A machine and what it says.
pub(super) struct Owned {
    pub(super) machine: Machine,
    pub(super) heard: Receiver<MachineEvent>,
}

impl Owned {
    pub(super) fn new(kvm: OwnedFd, num_cpus: u32) -> Self {
        let (ear, heard) = Ear::new();
        let config = MachineConfig { name: "vm".into(), num_cpus, threads_per_core: 1 };
        Self { machine: Machine::new(kvm, config, ear).unwrap(), heard }
    }

    /// With everything but a kernel; slots 0 and 1. None where there is no KVM.
    pub(super) fn built(num_cpus: u32) -> Option<Self> {
        let owned = Self::new(kvm()?, num_cpus);
        owned.machine.add_memory(memory()).unwrap();
        owned.machine.add_platform(platform()).unwrap();
        owned.machine.add_slot(slot(0)).unwrap();
        owned.machine.add_slot(slot(1)).unwrap();
        owned.machine.add_cpus().unwrap();
        Some(owned)
    }

    pub(super) fn running(code: &[u8]) -> Option<Self> {
        let owned = Self::built(1)?;
        owned.machine.load(&boot(code)).unwrap();
        owned.machine.resume().unwrap();
        Some(owned)
    }

    pub(super) fn event(&self) -> MachineEvent {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    pub(super) fn ram(&self) -> GuestRamHandle {
        self.machine.ram().unwrap()
    }

    pub(super) fn word(&self, addr: u64) -> u32 {
        self.ram().read_obj(GuestAddress(addr)).unwrap()
    }

    pub(super) fn becomes(&self, addr: u64, wanted: u32) {
        let deadline = Instant::now() + PATIENCE;
        while self.word(addr) != wanted {
            assert!(Instant::now() < deadline, "{:#x} is {:#x}, not {wanted:#x}", addr, self.word(addr));
            std::thread::yield_now();
        }
    }

    pub(super) fn pause(&self) {
        self.machine.pause(PATIENCE).unwrap();
    }
}

pub(super) fn errno<T>(outcome: strato_plumbing::Result<T>) -> libc::c_int {
    outcome.map(|_| ()).unwrap_err().errno()
}

/// Waits until there is something.
pub(super) fn wait<T>(mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}
