//! A processor of the guest's, with the registers of all devices: what it writes there is done on its own thread.

use crate::rules::{Rule, is, permit};

// linux/kvm.h, the numbers of asm-generic/ioctl.h
const KVM_RUN: i32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_KVMCLOCK_CTRL: i32 = 0xaead;
const KVM_SET_GSI_ROUTING: i32 = 0x4008_ae6a;

pub(in crate::tables) const RULES: [Rule; 12] = [
    permit!(SYS_ioctl, [is(1, KVM_RUN)], "Into the guest"),
    permit!(SYS_ioctl, [is(1, KVM_KVMCLOCK_CTRL)], "The guest is not to take a pause for a lock-up"),
    permit!(SYS_ioctl, [is(1, KVM_GET_REGS as i32)], "Where the guest was when KVM could not go on"),
    permit!(SYS_ioctl, [is(1, KVM_SET_GSI_ROUTING)], "Registers of the I/O APIC"),
    permit!(SYS_rt_sigreturn, "Out of the guest, by the signal for that"),
    permit!(SYS_getpid, "The signal that takes the other vCPUs out of the guest"),
    permit!(SYS_tgkill, "The signal that takes the other vCPUs out of the guest"),
    permit!(SYS_gettid, "Who is to be given that signal"),
    permit!(SYS_read, "Eventfds"),
    permit!(SYS_preadv2, "Eventfds that another process may make block"),
    permit!(SYS_poll, "Whether an interrupt can be told without waiting"),
    permit!(SYS_restart_syscall, "Waiting goes on after a stop"),
];
