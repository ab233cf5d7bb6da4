//! A tap.

use crate::rules::{Rule, is, permit};

pub(in crate::tables) const RULES: [Rule; 5] = [
    permit!(SYS_sendto, "The link has changed"),
    permit!(SYS_readv, "From the tap to the guest's buffers"),
    permit!(SYS_writev, "From the guest's buffers to the tap"),
    permit!(SYS_ioctl, [is(1, libc::TUNSETOFFLOAD as i32)], "What the guest's driver can take"),
    permit!(
        SYS_ioctl,
        [is(1, libc::TUNSETQUEUE as i32)],
        "A queue that the guest does not use gets no packets"
    ),
];
