//! A processor of the guest's, with the registers of all devices: what the guest writes there is done on this thread, or
//! by the device's own, which this one waits for.

use super::kvm::{KVM_GET_REGS, KVM_KVMCLOCK_CTRL, KVM_RUN, KVM_SET_GSI_ROUTING};
use crate::rules::{Rule, is, permit};

pub(in crate::tables) const RULES: [Rule; 9] = [
    permit!(SYS_ioctl, [is(1, KVM_RUN)], "Into the guest"),
    permit!(SYS_ioctl, [is(1, KVM_KVMCLOCK_CTRL)], "The guest is not to take a pause for a lock-up"),
    permit!(SYS_ioctl, [is(1, KVM_GET_REGS)], "Where the guest was when KVM could not go on"),
    permit!(SYS_ioctl, [is(1, KVM_SET_GSI_ROUTING)], "Registers of the I/O APIC"),
    permit!(SYS_rt_sigreturn, "Out of the guest, by the signal for that"),
    permit!(SYS_getpid, "The signal that takes the other vCPUs out of the guest"),
    permit!(SYS_tgkill, "The signal that takes the other vCPUs out of the guest"),
    permit!(SYS_gettid, "Who is to be given that signal"),
    permit!(SYS_fcntl, [is(1, libc::F_DUPFD_CLOEXEC)], "A queue's doorbell is handed to its device"),
];
