//! What the host may change in a running device, from any thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::Tap;
use crate::limits::Limits;

pub(super) enum Order {
    Link(bool),
    Announce,
    ReceiveLimits(Limits),
    TransmitLimits(Limits),
    Taps(Vec<Tap>),
}

struct Inbox {
    orders: Mutex<Vec<Order>>,
    wake: EventFd,
}

/// Orders to a [`super::Net`]; they are carried out by the device's own thread, in the order given.
#[derive(Clone)]
pub struct NetControl {
    inbox: Arc<Inbox>,
}

impl std::fmt::Debug for NetControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetControl")
    }
}

impl NetControl {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { inbox: Arc::new(Inbox { orders: Mutex::default(), wake }) })
    }

    /// Plugs the cable in or pulls it. While it is out, what the guest sends is dropped and nothing is received.
    pub fn set_link(&self, up: bool) {
        self.give(Order::Link(up));
    }

    /// Asks the guest to tell its neighbours where it is (after a move to another host).
    pub fn announce(&self) {
        self.give(Order::Announce);
    }

    /// Changes the limits of what the guest receives.
    pub fn set_receive_limits(&self, limits: Limits) {
        self.give(Order::ReceiveLimits(limits));
    }

    /// Changes the limits of what the guest sends.
    pub fn set_transmit_limits(&self, limits: Limits) {
        self.give(Order::TransmitLimits(limits));
    }

    /// Replaces the tap, one for each queue pair; a wrong number of them changes nothing.
    pub fn set_taps(&self, taps: Vec<Tap>) {
        self.give(Order::Taps(taps));
    }

    fn give(&self, order: Order) {
        self.inbox.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        // A full eventfd has a wake-up coming.
        let _ = self.inbox.wake.write(1);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.inbox.wake.as_raw_fd()
    }

    pub(super) fn take(&self) -> Vec<Order> {
        // Emptied before the orders are taken, so that none is left behind without a wake-up.
        let _ = self.inbox.wake.read();
        std::mem::take(&mut *self.inbox.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
