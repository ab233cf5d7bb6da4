//! What a connection of type SEQPACKET has beside a stream's: where messages end. A message is passed on as a
//! whole or not at all.

use std::collections::VecDeque;
use std::io;
use std::num::Wrapping;

use super::Connection;
use crate::vsock::backend::{self, Received};
use crate::vsock::queue::SocketType;

/// Most bytes of a message, in either direction, and with that the window of a connection that carries messages: a
/// guest that sends a longer one is told so by its own kernel, which knows the window. Unix sockets take messages
/// of up to about 200 KiB unless the host's administrator changes that (net.core.wmem_default).
pub(in crate::vsock) const MAX_MESSAGE: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Lengths of the whole messages in the backlog, in order. Empty for a stream.
    whole: VecDeque<u32>,
    /// Bytes at the end of the backlog whose message has not ended.
    part: usize,
    /// The host program's message that the guest has not got all of, and how much it has.
    on_its_way: Option<(Vec<u8>, usize)>,
}

impl Messages {
    pub(super) fn none_stored(&self) -> bool {
        self.whole.is_empty()
    }

    /// Those without bytes are bounded by no window, and a guest could send them for ever.
    pub(super) fn may_be_one_more(&self, window: u32) -> bool {
        self.whole.len() < window as usize
    }

    pub(super) fn forget_stored(&mut self) {
        self.whole = VecDeque::new();
        self.part = 0;
    }
}

impl Connection {
    /// Stores data of the guest, which ends a message or does not.
    pub(in crate::vsock) fn store_message(&mut self, data: &[u8], ends: bool) {
        self.backlog.extend(data);
        self.messages.part += data.len();
        if ends {
            self.messages.whole.push_back(std::mem::take(&mut self.messages.part) as u32);
        }
        self.flush();
    }

    /// The outcome of sending a message of the guest: true if it has gone.
    pub(in crate::vsock) fn message_sent(&mut self, outcome: io::Result<usize>) -> bool {
        let gone = outcome.is_ok();
        if outcome.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE)) {
            // This host's unix sockets take less than a window: it will never go, and nothing may overtake it.
            self.fail();
        } else {
            self.sent(outcome);
        }
        gone
    }

    pub(super) fn flush_messages(&mut self) {
        while self.writable && !self.host_takes_no_more {
            let (Some(fd), Some(&len)) = (self.fd(), self.messages.whole.front()) else { break };
            let len = len as usize;
            let (front, back) = self.backlog.as_slices();
            let front = front.get(..len).unwrap_or(front);
            let back = back.get(..len.saturating_sub(front.len())).unwrap_or_default();
            let outcome = backend::send(fd, (front, back));
            if self.message_sent(outcome) {
                self.backlog.drain(..len.min(self.backlog.len()));
                self.messages.whole.pop_front();
            }
        }
    }

    /// Whether what is left in the backlog is a message that the guest began and will not end.
    pub(super) fn message_will_not_end(&self) -> bool {
        self.socket_type == SocketType::Seqpacket && self.guest_sends_no_more && self.messages.none_stored()
    }

    pub(super) fn message_is_on_its_way(&self) -> bool {
        self.messages.on_its_way.is_some() && !self.guest_takes_no_more && self.stream.is_some()
    }

    /// Takes the host program's next message unless one is on its way. True if there is one.
    pub(in crate::vsock) fn fetch_message(&mut self) -> bool {
        if self.messages.on_its_way.is_some() {
            return true;
        }
        let Some(fd) = self.fd() else { return false };
        // A guest takes a message out of its buffer as a whole: one that is larger than that would block it.
        match backend::receive_message(fd, MAX_MESSAGE.min(self.guest_window as usize)) {
            Ok(Received::Message(message)) => self.messages.on_its_way = Some((message, 0)),
            Ok(Received::TooLong) => self.fail(),
            Ok(Received::End) => self.read_end(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.read_dry(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.read_failed(),
        }
        self.messages.on_its_way.is_some()
    }

    /// The next at most `most` bytes of the message on its way, and whether they are its last.
    pub(in crate::vsock) fn next_piece(&self, most: usize) -> Option<(&[u8], bool)> {
        let (message, gone) = self.messages.on_its_way.as_ref()?;
        let rest = message.get(*gone..).unwrap_or_default();
        let piece = rest.get(..most).unwrap_or(rest);
        Some((piece, piece.len() == rest.len()))
    }

    /// The guest got a piece of the message on its way.
    pub(in crate::vsock) fn piece_delivered(&mut self, len: usize, last: bool) {
        self.rx_cnt += Wrapping(len as u32);
        match &mut self.messages.on_its_way {
            Some(_) if last => self.messages.on_its_way = None,
            Some((_, gone)) => *gone += len,
            None => {}
        }
    }
}
