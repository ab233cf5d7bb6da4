//! The model-specific registers of a processor at power-on, and as a PC's firmware leaves them.

use std::ops::RangeInclusive;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use strato_plumbing::{Failure, Result};

use super::cpuid::CpuModel;

/// Names of arch/x86/include/asm/msr-index.h.
const MSR_IA32_ARCH_CAPABILITIES: u32 = 0x10A;
const MSR_IA32_MISC_ENABLE: u32 = 0x1A0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;

/// Fast strings; branch trace and precise sampling unavailable, as there are no performance counters. Without the
/// first Linux does without string instructions (arch/x86/kernel/cpu/intel.c).
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Memory is write-back where no MTRR says otherwise, and none does; MTRRs are on (Intel SDM volume 3,
/// section 12.11.2.1). Linux maps devices uncached by its own page tables.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Intel's PAT at power-on (section 12.12.4).
const PAT: u64 = 0x0007_0406_0007_0406;
/// Bit of ARCH_CAPABILITIES: there is an MSR by which transactions can be switched on again.
const ARCH_CAP_TSX_CTRL: u64 = 1 << 7;

/// Every processor has these, and every KVM.
const ALWAYS: [(u32, u64); 13] = [
    // IA32_SYSENTER_CS, _ESP, _EIP.
    (0x174, 0),
    (0x175, 0),
    (0x176, 0),
    (0x277, PAT),
    (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    // STAR, LSTAR, CSTAR, SYSCALL_MASK, KERNEL_GS_BASE.
    (0xC000_0081, 0),
    (0xC000_0082, 0),
    (0xC000_0083, 0),
    (0xC000_0084, 0),
    (0xC000_0102, 0),
    // MCG_STATUS; the only bank of machine checks: all of its errors wanted, none there.
    (0x17A, 0),
    (0x400, u64::MAX),
    (0x401, 0),
];

/// MTRRs: eight pairs for ranges, and those for fixed addresses. None says anything.
const MTRRS: [RangeInclusive<u32>; 4] = [0x200..=0x20F, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26F];

/// These are set where KVM knows them.
const WHERE_KNOWN: [(u32, u64); 11] = [
    // TSC_ADJUST, SPEC_CTRL, XSS, TSC_AUX. The TSC itself goes on: KVM keeps it equal on all vCPUs.
    (0x3B, 0),
    (0x48, 0),
    (0xDA0, 0),
    (0xC000_0103, 0),
    // MISC_FEATURES_ENABLES, by which a kernel hides CPUID from its programs.
    (0x140, 0),
    (MSR_IA32_MISC_ENABLE, MISC_ENABLE),
    // TSC_DEADLINE: a timer of the former life must not fire.
    (0x6E0, 0),
    // DEBUGCTL, VIRT_SPEC_CTRL. Not TSX_CTRL: by that KVM switches transactions off.
    (0x1D9, 0),
    (0xC001_011F, 0),
    // U_CET, S_CET.
    (0x6A0, 0),
    (0x6A2, 0),
];

/// KVM's own, each with the paravirtual feature that it belongs to. KVM writes to the guest addresses that most of
/// them hold until they are zero (Documentation/virt/kvm/x86/msr.rst).
const PARAVIRTUAL: [(u32, u32, u64); 9] = [
    // kvmclock, old and new.
    (0, 0x11, 0),
    (0, 0x12, 0),
    (3, 0x4B56_4D00, 0),
    (3, 0x4B56_4D01, 0),
    // Asynchronous page faults, and their interrupt; steal time; end of interrupt.
    (4, 0x4B56_4D02, 0),
    (14, 0x4B56_4D06, 0),
    (5, 0x4B56_4D03, 0),
    (6, 0x4B56_4D04, 0),
    // The host polls for an idle guest.
    (12, 0x4B56_4D05, 1),
];

/// Sets all of them. The CPUID must be set before: KVM decides by it which ones there are.
///
/// # Errors
/// Names the first that KVM refused.
pub fn reset(vcpu: &VcpuFd, model: &CpuModel) -> Result<()> {
    let mtrrs = MTRRS.into_iter().flatten().map(|index| (index, 0));
    let known = WHERE_KNOWN.into_iter().filter(|(index, _)| model.knows_msr(*index));
    let paravirtual = PARAVIRTUAL
        .into_iter()
        .filter(|(feature, ..)| model.has_paravirtual(*feature))
        .map(|(_, index, data)| (index, data));
    let all = ALWAYS.into_iter().chain(mtrrs).chain(known).chain(paravirtual);
    set(vcpu, &all.map(|(index, data)| entry(index, data)).collect::<Vec<_>>())
}

/// Takes the way away by which a guest could switch transactions on again, which its CPUID does not have. Before the
/// vCPU has run; later KVM refuses it.
///
/// # Errors
/// What KVM said.
pub fn hide_tsx_control(vcpu: &VcpuFd, model: &CpuModel) -> Result<()> {
    if !model.has_arch_capabilities() {
        return Ok(());
    }
    let offered = get(vcpu, MSR_IA32_ARCH_CAPABILITIES)?;
    if offered & ARCH_CAP_TSX_CTRL == 0 {
        return Ok(());
    }
    set(vcpu, &[entry(MSR_IA32_ARCH_CAPABILITIES, offered & !ARCH_CAP_TSX_CTRL)])
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..kvm_msr_entry::default() }
}

fn set(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<()> {
    let done = vcpu
        .set_msrs(&list(entries)?)
        .map_err(|error| Failure::new("Cannot set the MSRs of a vCPU", error.errno()))?;
    match entries.get(done) {
        None => Ok(()),
        Some(refused) => Err(Failure::refused(format!(
            "KVM refuses to set MSR {:#x} of a vCPU to {:#x}",
            refused.index, refused.data
        ))),
    }
}

/// Reads one.
///
/// # Errors
/// What KVM said, or that there is none of that number.
pub fn get(vcpu: &VcpuFd, index: u32) -> Result<u64> {
    let mut msrs = list(&[entry(index, 0)])?;
    let failure = |errno| Failure::new(format!("Cannot read MSR {index:#x} of a vCPU"), errno);
    let done = vcpu.get_msrs(&mut msrs).map_err(|error| failure(error.errno()))?;
    match msrs.as_slice().first() {
        Some(read) if done == 1 => Ok(read.data),
        _ => Err(failure(libc::EINVAL)),
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries)
        .map_err(|_| Failure::new(format!("{} MSRs are too many", entries.len()), libc::E2BIG))
}
