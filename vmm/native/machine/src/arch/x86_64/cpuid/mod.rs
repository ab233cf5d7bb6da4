//! Which processor the guest sees: what KVM supports on this host, less what must not reach a guest ([`leaves`]),
//! with the machine's own topology in place of the host's ([`placement`]).

mod leaves;
mod placement;
#[cfg(test)]
mod tests;

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_XCRS, KVM_MAX_CPUID_ENTRIES,
    kvm_cpuid_entry2,
};
use kvm_ioctls::{Kvm, VmFd};
use strato_plumbing::{Failure, Result};

use super::topology::Topology;

/// The processor that all vCPUs of a machine are. Made once; vCPUs differ in their number only.
#[derive(Clone, Debug)]
pub struct CpuModel {
    topology: Topology,
    vendor: Vendor,
    entries: Vec<kvm_cpuid_entry2>,
    enforces_pv: bool,
    has_xcr0: bool,
    /// MSRs that this KVM knows, in order (KVM_GET_MSR_INDEX_LIST).
    msrs: Vec<u32>,
}

/// Whose topology leaves there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    /// And whatever else is made like them.
    Intel,
    /// And Hygon.
    Amd,
}

/// What KVM leaves to its user to find out.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// Whether the APIC timer has TSC deadlines.
    deadline: bool,
    /// The processor's name: leaves 0x8000_0002 to 0x8000_0004.
    brand: [[u32; 4]; 3],
}

impl CpuModel {
    /// # Errors
    /// What KVM said, or a KVM that knows no processor.
    pub fn new(kvm: &Kvm, vm: &VmFd, topology: Topology) -> Result<Self> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| Failure::new("Cannot ask KVM which CPUID it supports", error.errno()))?;
        let host = Host {
            deadline: vm.check_extension_raw(KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0,
            brand: leaves::brand(),
        };
        let list = kvm
            .get_msr_index_list()
            .map_err(|error| Failure::new("Cannot ask KVM which MSRs it knows", error.errno()))?;
        let mut msrs = list.as_slice().to_vec();
        msrs.sort_unstable();
        let enforces_pv = vm.check_extension_raw(KVM_CAP_ENFORCE_PV_FEATURE_CPUID.into()) > 0;
        let has_xcr0 = vm.check_extension_raw(KVM_CAP_XCRS.into()) > 0;
        let model = Self::from_supported(supported.as_slice(), host, topology)?;
        Ok(Self { enforces_pv, has_xcr0, msrs, ..model })
    }

    /// The model that follows from what KVM supports.
    fn from_supported(supported: &[kvm_cpuid_entry2], host: Host, topology: Topology) -> Result<Self> {
        let identity = find(supported, 0, 0)
            .ok_or_else(|| Failure::refused("KVM supports no CPUID leaf 0, so it can run no processor"))?;
        let vendor = match &[identity.ebx, identity.edx, identity.ecx].map(u32::to_le_bytes).concat()[..] {
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Intel,
        };
        let mut entries = leaves::allowed(supported);
        leaves::remove_features(&mut entries, vendor);
        leaves::add_features(&mut entries, host);
        leaves::remove_tile_state(&mut entries);
        Ok(Self { topology, vendor, entries, enforces_pv: false, has_xcr0: false, msrs: Vec::new() })
    }

    /// How many processors there are, in what cores.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// What vCPU `index` answers to CPUID.
    ///
    /// # Errors
    /// More entries than KVM takes.
    pub fn cpuid(&self, index: u32) -> Result<CpuId> {
        let entries = placement::placed(&self.entries, self.vendor, self.topology, index);
        CpuId::from_entries(&entries)
            .map_err(|_| Failure::new(format!("{} CPUID entries are too many", entries.len()), libc::E2BIG))
    }

    /// Whether KVM can be told to refuse paravirtual MSRs that are not in CPUID.
    pub(super) fn enforces_pv(&self) -> bool {
        self.enforces_pv
    }

    /// Whether processors have the register that says which state XSAVE saves.
    pub(super) fn has_xcr0(&self) -> bool {
        self.has_xcr0
    }

    /// Whether guests have one of KVM's paravirtual features, by its number.
    pub(super) fn has_paravirtual(&self, feature: u32) -> bool {
        find(&self.entries, leaves::KVM_FEATURES, 0).is_some_and(|leaf| leaf.eax >> feature & 1 != 0)
    }

    /// Whether guests have the MSR IA32_ARCH_CAPABILITIES: bit 29 of leaf 7, EDX.
    pub(super) fn has_arch_capabilities(&self) -> bool {
        find(&self.entries, 0x7, 0).is_some_and(|leaf| leaf.edx >> 29 & 1 != 0)
    }

    /// Whether this KVM knows an MSR.
    pub(super) fn knows_msr(&self, index: u32) -> bool {
        self.msrs.binary_search(&index).is_ok()
    }
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf))
}

fn find_mut(entries: &mut [kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&mut kvm_cpuid_entry2> {
    entries.iter_mut().find(|entry| (entry.function, entry.index) == (leaf, subleaf))
}
