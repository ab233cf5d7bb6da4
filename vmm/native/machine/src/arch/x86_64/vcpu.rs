//! A vCPU at power-on, and at the entry of a kernel.
#![expect(unsafe_code, reason = "an ioctl that has no wrapper")]

use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVMIO, kvm_debugregs, kvm_enable_cap,
    kvm_fpu, kvm_mp_state, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use strato_plumbing::failure::last_errno;
use strato_plumbing::{Failure, Result};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::cpuid::CpuModel;
use super::kernel::BootEntry;
use super::{lapic, msr, registers};

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);

/// Registers at power-on: of the x87 and SSE units (Intel SDM volume 3, table 10-1), of debugging (section 18.2), and
/// XCR0, in which x87 is always set.
const FPU_CONTROL: u16 = 0x37F;
const MXCSR: u32 = 0x1F80;
const DR6: u64 = 0xFFFF_0FF0;
const DR7: u64 = 0x400;
const XCR0_X87: u64 = 1;

/// Makes a new vCPU the processor of the model. Its number is its APIC id.
///
/// # Errors
/// What KVM said.
pub fn configure_vcpu(vcpu: &VcpuFd, index: u32, model: &CpuModel) -> Result<()> {
    let failure = |what: &str, errno| Failure::new(format!("Cannot {what} vCPU {index}"), errno);
    vcpu.set_cpuid2(&model.cpuid(index)?).map_err(|error| failure("set the CPUID of", error.errno()))?;
    if model.enforces_pv() {
        let enforce = kvm_enable_cap {
            cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vcpu.enable_cap(&enforce)
            .map_err(|error| failure("hide paravirtual features from", error.errno()))?;
    }
    setup_machine_checks(vcpu).map_err(|errno| failure("limit the machine checks of", errno))?;
    msr::hide_tsx_control(vcpu, model)
}

/// One bank of machine-check registers, the fewest there can be: a guest hears of no errors of the host's hardware, and
/// a kernel visits each bank several times when it starts a processor. KVM gives 32.
fn setup_machine_checks(vcpu: &VcpuFd) -> std::result::Result<(), i32> {
    const MCG_CAP: u64 = 1;
    // SAFETY: the ioctl reads a u64, which lives through the call.
    let outcome = unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &MCG_CAP) };
    if outcome < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Puts a vCPU into its state at power-on. Vcpu 0 can then run; the others wait for it to start them.
///
/// # Errors
/// What KVM said.
pub fn reset_vcpu(vcpu: &VcpuFd, index: u32, model: &CpuModel) -> Result<()> {
    let failure = |what: &str, errno| Failure::new(format!("Cannot reset the {what} of vCPU {index}"), errno);
    // The APIC base first: it decides how the APIC's own registers are read.
    vcpu.set_sregs(&registers::special_at_power_on(index))
        .map_err(|error| failure("special registers", error.errno()))?;
    vcpu.set_regs(&registers::general_at_power_on()).map_err(|error| failure("registers", error.errno()))?;
    let fpu = kvm_fpu { fcw: FPU_CONTROL, mxcsr: MXCSR, ..kvm_fpu::default() };
    vcpu.set_fpu(&fpu).map_err(|error| failure("floating-point unit", error.errno()))?;
    if model.has_xcr0() {
        vcpu.set_xcrs(&xcr0_at_power_on()).map_err(|error| failure("XCR0", error.errno()))?;
    }
    let debug = kvm_debugregs { dr6: DR6, dr7: DR7, ..kvm_debugregs::default() };
    vcpu.set_debug_regs(&debug).map_err(|error| failure("debug registers", error.errno()))?;
    msr::reset(vcpu, model)?;
    lapic::reset(vcpu, index)?;
    // Nothing is pending or being delivered.
    let events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    vcpu.set_vcpu_events(&events).map_err(|error| failure("pending events", error.errno()))?;
    let state = if index == 0 { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
    vcpu.set_mp_state(kvm_mp_state { mp_state: state }).map_err(|error| failure("run state", error.errno()))
}

fn xcr0_at_power_on() -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    if let Some(first) = xcrs.xcrs.first_mut() {
        (first.xcr, first.value) = (0, XCR0_X87);
    }
    xcrs
}

/// Gives vCPU 0, which has been reset, the registers with which the kernel begins.
///
/// # Errors
/// What KVM said.
pub fn enter(vcpu: &VcpuFd, entry: &BootEntry) -> Result<()> {
    let failure = |errno| Failure::new("Cannot set the registers of the kernel's entry", errno);
    let sregs = vcpu.get_sregs().map_err(|error| failure(error.errno()))?;
    vcpu.set_sregs(&registers::special(entry.mode, &sregs)).map_err(|error| failure(error.errno()))?;
    vcpu.set_regs(&registers::general(entry.mode, entry.addr, entry.info_addr))
        .map_err(|error| failure(error.errno()))
}

#[cfg(test)]
mod tests;
