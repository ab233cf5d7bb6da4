//! One queue pair and its queue of the tap.

use strato_virtio::{Events, Interest};

use super::backend::Tap;
use super::receive::Receiver;
use super::transmit::Transmitter;

/// One queue pair with its queue of the tap.
pub(super) struct Pair {
    pub(super) tap: Tap,
    /// Whether events of the tap are heard. They are not while they would lead to nothing.
    pub(super) watched: bool,
    /// Whether the host gives packets to this queue of the tap.
    pub(super) attached: bool,
    /// The receive queue runs.
    pub(super) running: bool,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
}

impl Pair {
    pub(super) fn new(tap: Tap) -> Self {
        Self {
            tap,
            watched: false,
            attached: true,
            running: false,
            receiver: Receiver::new(),
            transmitter: Transmitter::default(),
        }
    }

    pub(super) fn watch(&mut self, events: &Events, index: usize, watched: bool) {
        if self.watched != watched {
            let interest = if watched { Interest::Edges } else { Interest::Nothing };
            if events.change(self.tap.fd(), index as u64, interest).is_ok() {
                self.watched = watched;
            }
        }
    }
}
