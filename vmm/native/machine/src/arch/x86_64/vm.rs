//! What belongs to the VM as a whole.

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Cap, VmFd};
use strato_plumbing::{Failure, Result};

use super::layout;

/// What this program cannot do without here, by KVM's names.
pub(crate) const REQUIRED: [(Cap, &str); 3] = [
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Reserves the pages that KVM needs for itself, and switches the virtual performance counters off. Comes before the
/// first vCPU.
///
/// # Errors
/// What KVM said.
pub fn prepare_vm(vm: &VmFd) -> Result<()> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP_ADDR)
        .map_err(|error| Failure::new("Cannot set the address of KVM's identity map", error.errno()))?;
    vm.set_tss_address(layout::KVM_TSS_ADDR as usize)
        .map_err(|error| Failure::new("Cannot set the address of KVM's TSS", error.errno()))?;
    disable_pmu(vm)
}

/// Performance counters see what neighbours on the core do, and saving them costs every switch to the host. Leaving
/// them out of CPUID is not enough: AMD's are there for who tries. KVM before 5.18 cannot switch them off.
fn disable_pmu(vm: &VmFd) -> Result<()> {
    let offered = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if offered <= 0 || offered as u32 & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let off = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&off)
        .map_err(|error| Failure::new("Cannot switch the virtual performance counters off", error.errno()))
}
