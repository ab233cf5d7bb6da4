//! What is asked of the device at run time, and the event that tells the guest of a transport reset.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strato_virtio::{Chain, DeviceFault, DeviceIo, Progress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{EVENT_QUEUE, TX_QUEUE, Vsock};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7).
const EVENT_TRANSPORT_RESET: u32 = 0;
const EVENT_LEN: u32 = 4;

#[derive(Debug)]
struct Shared {
    reset: AtomicBool,
    wake: EventFd,
}

/// A handle on a running device, for any thread; clones are equal.
#[derive(Clone, Debug)]
pub struct VsockControl(Arc<Shared>);

impl VsockControl {
    /// Ends all connections and has the guest told that the transport was reset: what a clone needs, whose
    /// connections are its origin's. Listeners stay; host programs whose request the guest has not seen wait.
    /// Without an event queue (QEMU's front end does not share it) the guest gets one reset per connection.
    /// Returns before it is done; several calls may become one reset.
    ///
    /// # Errors
    /// The device could not be woken.
    pub fn reset_transport(&self) -> io::Result<()> {
        self.0.reset.store(true, Ordering::Release);
        self.0.wake.write(1)
    }
}

/// The device's end of its handles.
#[derive(Debug)]
pub(super) struct ControlInbox(Arc<Shared>);

impl ControlInbox {
    /// # Errors
    /// No descriptor to be had.
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared { reset: AtomicBool::new(false), wake })))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }

    pub(super) fn handle(&self) -> VsockControl {
        VsockControl(Arc::clone(&self.0))
    }

    /// Whether a reset was asked for since the last call.
    pub(super) fn take_reset(&self) -> bool {
        // Emptied first, so that an order given in between is not lost.
        let _ = self.0.wake.read();
        self.0.reset.swap(false, Ordering::AcqRel)
    }
}

/// How far the guest has been told of a transport reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// There is nothing to tell.
    None,
    /// It waits for an event buffer.
    Due,
    /// The guest has the event and had this many more buffers out. It offers another one when it has acted on
    /// it; a connection made before that would be taken down with the old ones.
    Told(u16),
}

impl Notice {
    /// Whether both data queues stand still until the guest has heard.
    pub(super) fn holds(self) -> bool {
        self != Self::None
    }

    /// A new driver does not answer what the old one was told; telling it again does no harm.
    pub(super) fn forget_answer(&mut self) {
        if let Self::Told(_) = self {
            *self = Self::Due;
        }
    }
}

impl Vsock {
    /// Carries [`VsockControl::reset_transport`] out.
    pub(super) fn reset_on_demand(&mut self, io: &mut DeviceIo<'_>) {
        if io.ring(TX_QUEUE).is_some() && io.ring(EVENT_QUEUE).is_none() {
            // QEMU's front end keeps the event queue to itself: each connection is reset on its own.
            for token in self.table.tokens() {
                if self.table.connection(token).is_some_and(|connection| !connection.due.request) {
                    self.reset_connection(token);
                }
            }
        } else {
            self.reset_transport();
        }
    }

    /// Tells the guest of a transport reset and waits for it to act on that; nothing else moves until then.
    pub(super) fn announce(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        if !self.notice.holds() {
            return Ok(Progress::Idle);
        }
        let Some(mut ring) = io.ring(EVENT_QUEUE) else { return Ok(Progress::Idle) };
        if let Notice::Told(left) = self.notice {
            if ring.available() > left {
                self.notice = Notice::None;
                // Packets that the guest sent meanwhile have been waiting without a kick to come.
                self.transmit_pending = true;
            }
            return Ok(Progress::Idle);
        }
        let (mut chain, mut other) = (Chain::new(), Chain::new());
        for _ in 0..ring.size() {
            if !ring.pop(&mut chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                ring.notify()?;
                return Ok(Progress::Idle);
            }
            if chain.writable_len() < EVENT_LEN {
                ring.complete(chain.head(), 0)?;
                continue;
            }
            // The others are counted before the guest can answer, and put back. A kick for one more comes only
            // if all that are there have been seen.
            let mut left = 0;
            loop {
                while ring.pop(&mut other)? {
                    left += 1;
                }
                if !ring.allow_kicks()? {
                    break;
                }
            }
            for _ in 0..left {
                ring.unpop();
            }
            let event = EVENT_TRANSPORT_RESET.to_le_bytes();
            ring.write(&chain, 0, &event).map_err(|error| ring.fault(error))?;
            ring.complete(chain.head(), EVENT_LEN)?;
            self.notice = Notice::Told(left);
            ring.notify()?;
            return Ok(Progress::Idle);
        }
        ring.notify()?;
        Ok(Progress::Again)
    }
}
