//! The VM: KVM's side of memory, interrupts and doorbells.
//!
//! [`Vm`] lives as long as its last vCPU; guest RAM is kept until KVM has let go of it.
#![expect(unsafe_code, reason = "KVM takes descriptors and memory")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRamHandle;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, InterruptController, LINES};

/// What this program cannot do without on any architecture, by KVM's names.
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

pub(crate) fn failure(what: impl Into<String>, error: kvm_ioctls::Error) -> Failure {
    Failure::new(what, error.errno())
}

/// A virtual machine, still without its threads.
pub(crate) struct Vm {
    interrupts: Arc<InterruptController>,
    // Before RAM: KVM lets go of the mappings first.
    fd: Arc<VmFd>,
    kvm: Kvm,
    ram: Option<GuestRamHandle>,
    dirty_log: bool,
}

/// The KVM device behind a descriptor, if it is one that this program understands.
pub(crate) fn open(kvm: OwnedFd) -> Result<Kvm> {
    // SAFETY: the descriptor is owned, and given away here.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(Failure::new(
            format!(
                "KVM's interface is {version}, not {KVM_API_VERSION}: is the descriptor one of /dev/kvm?"
            ),
            libc::ENOTSUP,
        ));
    }
    for (cap, name) in REQUIRED.into_iter().chain(arch::REQUIRED) {
        if !kvm.check_extension(cap) {
            return Err(Failure::new(format!("This host's KVM lacks {name}"), libc::ENOTSUP));
        }
    }
    Ok(kvm)
}

impl Vm {
    /// A VM with its interrupt controllers.
    ///
    /// # Errors
    /// ENOTSUP: KVM lacks something; otherwise what it says.
    pub(crate) fn new(kvm: OwnedFd) -> Result<Self> {
        let kvm = open(kvm)?;
        let fd = loop {
            match kvm.create_vm() {
                // Python's signals may come while the kernel takes its locks (mm_take_all_locks).
                Err(error) if error.errno() == libc::EINTR => {}
                outcome => break outcome.map_err(|error| failure("Cannot create a VM", error))?,
            }
        };
        arch::prepare_vm(&fd)?;
        let fd = Arc::new(fd);
        let interrupts = InterruptController::new(Arc::clone(&fd))?;
        Ok(Self { interrupts, fd, kvm, ram: None, dirty_log: false })
    }

    pub(crate) fn interrupts(&self) -> &Arc<InterruptController> {
        &self.interrupts
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(crate) fn ram(&self) -> Option<&GuestRamHandle> {
        self.ram.as_ref()
    }

    /// Gives the guest its RAM: one memory slot for each region.
    ///
    /// # Errors
    /// EEXIST: it has some; otherwise what KVM says.
    pub(crate) fn add_ram(&mut self, ram: GuestRamHandle) -> Result<()> {
        if self.ram.is_some() {
            return Err(Failure::new("Machine has RAM already", libc::EEXIST));
        }
        // Kept before the first slot is set: none may outlive its mapping.
        self.ram = Some(ram);
        self.set_slots(0)
    }

    fn set_slots(&self, flags: u32) -> Result<()> {
        for (slot, region) in (0..).zip(self.ram.iter().flat_map(|ram| ram.iter())) {
            let memory = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is the guest's alone but for devices, which use it by volatile accesses, and it
            // lives as long as the VM: `ram` is dropped after `fd`.
            unsafe { self.fd.set_user_memory_region(memory) }.map_err(|error| {
                let at = memory.guest_phys_addr;
                failure(format!("Cannot give the guest {:#x} bytes at {at:#x}", memory.memory_size), error)
            })?;
        }
        Ok(())
    }

    /// Starts or ends the record of pages that the guest writes. Devices' writes are not in it.
    ///
    /// # Errors
    /// What KVM says.
    pub(crate) fn set_dirty_log(&mut self, on: bool) -> Result<()> {
        self.set_slots(if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?;
        self.dirty_log = on;
        Ok(())
    }

    /// The pages written since the last call, one bit each, for every region of RAM.
    ///
    /// # Errors
    /// The record is off, or what KVM says.
    pub(crate) fn take_dirty_log(&self) -> Result<Vec<Vec<u64>>> {
        if !self.dirty_log {
            return Err(Failure::refused("Dirty pages are not recorded: switch the dirty log on first"));
        }
        let regions = self.ram.iter().flat_map(|ram| ram.iter());
        let log = |(slot, region): (u32, &vm_memory::GuestRegionMmap)| {
            let pages = self.fd.get_dirty_log(slot, region.len() as usize);
            pages.map_err(|error| failure("Cannot read the dirty log", error))
        };
        (0..).zip(regions).map(log).collect()
    }

    /// A signal of `interrupt` is an edge on line `gsi`.
    ///
    /// # Errors
    /// What KVM says.
    pub(crate) fn connect_interrupt(&self, interrupt: &EventFd, gsi: u32) -> Result<()> {
        if gsi >= LINES {
            return Err(Failure::refused(format!(
                "Interrupt line {gsi} does not exist: the last one is {}",
                LINES - 1
            )));
        }
        let outcome = self.fd.register_irqfd(interrupt, gsi);
        outcome.map_err(|error| failure(format!("Cannot connect interrupt line {gsi}"), error))
    }

    /// Undoes [`Self::connect_interrupt`].
    pub(crate) fn disconnect_interrupt(&self, interrupt: &EventFd, gsi: u32) -> Result<()> {
        let outcome = self.fd.unregister_irqfd(interrupt, gsi);
        outcome.map_err(|error| failure(format!("Cannot disconnect interrupt line {gsi}"), error))
    }

    /// A guest's write of the 32-bit `value` to `addr` signals `doorbell`, without an exit.
    ///
    /// # Errors
    /// What KVM says.
    pub(crate) fn connect_doorbell(&self, doorbell: &EventFd, addr: u64, value: u32) -> Result<()> {
        let outcome = self.fd.register_ioevent(doorbell, &IoEventAddress::Mmio(addr), value);
        outcome.map_err(|error| failure(format!("Cannot connect the doorbell at {addr:#x}"), error))
    }

    /// Undoes [`Self::connect_doorbell`].
    pub(crate) fn disconnect_doorbell(&self, doorbell: &EventFd, addr: u64, value: u32) -> Result<()> {
        let outcome = self.fd.unregister_ioevent(doorbell, &IoEventAddress::Mmio(addr), value);
        outcome.map_err(|error| failure(format!("Cannot disconnect the doorbell at {addr:#x}"), error))
    }

    /// Refuses a number of vCPUs that KVM does not give.
    pub(crate) fn check_cpus(&self, count: u32) -> Result<()> {
        let most = self.kvm.get_max_vcpus();
        if count == 0 || count as usize > most {
            return Err(Failure::refused(format!(
                "Machine cannot have {count} vCPUs: KVM gives 1 to {most}"
            )));
        }
        Ok(())
    }

    /// Makes `count` vCPUs, ids from 0.
    ///
    /// # Errors
    /// What KVM says.
    pub(crate) fn create_vcpus(&self, count: u32) -> Result<Vec<VcpuFd>> {
        let create = |id: u32| {
            let vcpu = self.fd.create_vcpu(id.into());
            vcpu.map_err(|error| failure(format!("Cannot create vCPU {id}"), error))
        };
        let vcpus: Vec<VcpuFd> = (0..count).map(create).collect::<Result<_>>()?;
        if let Some(first) = vcpus.first() {
            self.interrupts.coalesce(first)?;
        }
        Ok(vcpus)
    }
}
