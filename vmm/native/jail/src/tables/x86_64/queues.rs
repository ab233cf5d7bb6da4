//! What every device does with its queues.

use crate::rules::{Rule, permit};

pub(in crate::tables) const RULES: [Rule; 5] = [
    permit!(SYS_epoll_wait, "Waiting for the guest and everything else"),
    permit!(SYS_epoll_ctl, "Queues and what is behind the device come and go"),
    permit!(SYS_read, "Eventfds and timers"),
    permit!(SYS_preadv2, "Emptying an eventfd that another process may make block"),
    permit!(SYS_poll, "Whether an interrupt can be told without waiting: not all front ends see to that"),
];

/// For devices that have limits, or do something later.
pub(in crate::tables) const LIMITS: [Rule; 1] =
    [permit!(SYS_timerfd_settime, "Limits: when more may be done; what is done a moment later")];
