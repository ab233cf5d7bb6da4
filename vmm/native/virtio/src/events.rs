//! The epoll set of one device: the core's own descriptors beside the kicks of its rings.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Largest token a core may use; the ones above belong to the host.
pub const MAX_CORE_TOKEN: u64 = (1 << 62) - 1;
pub(crate) const KICK_TOKEN: u64 = 1 << 62;
pub(crate) const COMMAND_TOKEN: u64 = 1 << 63;

/// What a core wants to hear about a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Readable, level-triggered: for listeners and timers, which are emptied at every wake-up.
    Readable,
    /// Readable, edge-triggered: for eventfds, each write of which is an event of its own. They need not be
    /// read.
    Signals,
    /// Readable, writable and hang-up, edge-triggered: the core remembers the state itself, so that a
    /// stalled stream costs neither wake-ups nor system calls.
    Edges,
    /// As [`Self::Edges`], of the two directions only those wanted at the moment: the other end's work makes
    /// readable and writable again and again what the core knows to be so. A hang-up is always told.
    Stream {
        /// Tell when there is something to read.
        input: bool,
        /// Tell when there is room to write.
        output: bool,
    },
    /// Nothing but a failure of the descriptor, and that once: for a stream that nobody can take from now.
    Nothing,
}

impl Interest {
    fn set(self) -> EventSet {
        match self {
            Self::Readable => EventSet::IN,
            Self::Signals => EventSet::IN | EventSet::EDGE_TRIGGERED,
            Self::Edges => EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED,
            Self::Stream { input, output } => {
                let mut set = EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
                set.set(EventSet::IN, input);
                set.set(EventSet::OUT, output);
                set
            }
            Self::Nothing => EventSet::EDGE_TRIGGERED,
        }
    }
}

/// What happened on a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Data (or end of data, or an error) can be read.
    pub readable: bool,
    /// Data can be written.
    pub writable: bool,
    /// Both directions are closed, or the descriptor failed.
    pub hung_up: bool,
}

impl From<EventSet> for Ready {
    fn from(set: EventSet) -> Self {
        let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        Self {
            readable: hung_up || set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
            writable: hung_up || set.contains(EventSet::OUT),
            hung_up,
        }
    }
}

/// An epoll descriptor with tokens. Closing a descriptor removes it (it is never duplicated by a core).
#[derive(Debug)]
pub struct Events {
    epoll: Epoll,
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Watches `fd`; events carry `token`, at most [`MAX_CORE_TOKEN`] for cores.
    pub fn add(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(interest.set(), token))
    }

    /// Changes what is heard of `fd`. What is ready at that moment is told again.
    pub fn change(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(interest.set(), token))
    }

    /// Stops watching `fd`. An `fd` that is not watched is not an error.
    pub fn remove(&self, fd: RawFd) {
        // Only fails when the descriptor was never added, and then there is nothing to undo.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Waits up to `timeout_ms` (-1: for ever) and returns how many of `buffer` were filled.
    pub(crate) fn wait(&self, timeout_ms: i32, buffer: &mut [EpollEvent]) -> io::Result<usize> {
        match self.epoll.wait(timeout_ms, buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other,
        }
    }
}
