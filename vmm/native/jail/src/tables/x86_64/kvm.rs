//! The calls of a virtual machine that is in use: what a reset and devices that come and go take. Nothing here makes
//! a machine or gives one memory.

use crate::rules::{Rule, is, permit};

// linux/kvm.h; the numbers are those of asm-generic/ioctl.h, with the sizes of asm/kvm.h
pub(super) const KVM_RUN: i32 = 0xae80;
pub(super) const KVM_KVMCLOCK_CTRL: i32 = 0xaead;
pub(super) const KVM_GET_REGS: i32 = 0x8090_ae81_u32 as i32;
pub(super) const KVM_SET_GSI_ROUTING: i32 = 0x4008_ae6a;
const KVM_SET_REGS: i32 = 0x4090_ae82;
const KVM_GET_SREGS: i32 = 0x8138_ae83_u32 as i32;
const KVM_SET_SREGS: i32 = 0x4138_ae84;
const KVM_SET_MSRS: i32 = 0x4008_ae89;
const KVM_SET_FPU: i32 = 0x41a0_ae8d;
const KVM_GET_LAPIC: i32 = 0x8400_ae8e_u32 as i32;
const KVM_SET_LAPIC: i32 = 0x4400_ae8f;
const KVM_SET_MP_STATE: i32 = 0x4004_ae99;
const KVM_SET_VCPU_EVENTS: i32 = 0x4040_aea0;
const KVM_SET_DEBUGREGS: i32 = 0x4080_aea2;
const KVM_SET_XCRS: i32 = 0x4188_aea7;
const KVM_IRQFD: i32 = 0x4020_ae76;
const KVM_IOEVENTFD: i32 = 0x4040_ae79;

const RESET: &str = "A reset: the vCPUs as at power-on";

pub(in crate::tables) const CONTROL: [Rule; 17] = [
    permit!(SYS_ioctl, [is(1, KVM_IRQFD)], "A device's interrupts"),
    permit!(SYS_ioctl, [is(1, KVM_IOEVENTFD)], "A device's doorbells"),
    permit!(SYS_ioctl, [is(1, KVM_SET_GSI_ROUTING)], "A reset of the I/O APIC"),
    permit!(SYS_ioctl, [is(1, KVM_GET_SREGS)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_SREGS)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_REGS)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_MSRS)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_FPU)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_XCRS)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_GET_LAPIC)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_LAPIC)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_MP_STATE)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_VCPU_EVENTS)], RESET),
    permit!(SYS_ioctl, [is(1, KVM_SET_DEBUGREGS)], RESET),
    permit!(SYS_pread64, "What KVM counts"),
    permit!(
        SYS_fallocate,
        [is(1, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE)],
        "RAM is empty again"
    ),
    // vCPUs are taken out of the guest by a signal to their threads, which control.rs allows.
    permit!(SYS_readv, "The kernel's file is loaded again"),
];
