//! One connection between a guest socket and a unix socket: credit, closing, and what is due to be sent.
//!
//! Does no I/O towards the guest; `transmit` and `receive` do.

mod messages;
mod watched;

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use strato_virtio::Ready;

use self::messages::Messages;
use super::backend;
use super::queue::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, SocketType};

pub(super) use self::messages::MAX_MESSAGE;
pub(super) use self::watched::Watched;

/// The two ports; the context ids are always the host's and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest asked; the host program's backlog is full at the moment.
    Dialling,
    /// The host asked; the guest has not answered.
    Requested,
    /// Data flows.
    Open,
}

/// Control packets due to the guest; each at most once, so they need no queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) credit_update: bool,
    pub(super) credit_request: bool,
    pub(super) reset: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    /// None once the port pair is free again and only the rest is delivered to the host program.
    pub(super) ports: Option<Ports>,
    pub(super) socket_type: SocketType,
    pub(super) phase: Phase,
    pub(super) due: Due,
    /// Whether it stands in the queue of those with something for the guest.
    pub(super) scheduled: bool,
    /// When the guest was given the request.
    asked_at: Option<Instant>,
    stream: Option<UnixStream>,

    // Towards the host program.
    backlog: VecDeque<u8>,
    messages: Messages,
    window: u32,
    fwd_cnt: Wrapping<u32>,
    fwd_cnt_told: Wrapping<u32>,
    guest_sends_no_more: bool,
    end_passed_on: bool,
    host_takes_no_more: bool,
    writable: bool,

    // Towards the guest.
    rx_cnt: Wrapping<u32>,
    guest_window: u32,
    guest_fwd_cnt: Wrapping<u32>,
    guest_takes_no_more: bool,
    host_sends_no_more: bool,
    readable: bool,
    hung_up: bool,
    told_twice: bool,
    watched: Watched,
    /// Whether somebody looks from time to time if the stream stands still.
    pub(super) observed: bool,
    /// The guest was asked for room, and has given none yet.
    pub(super) asked_for_room: bool,
    shutdown_told: u32,
    /// How many guest buffers to offer to the next read; follows what reads yield.
    pub(super) batch: usize,
    /// Bytes that went to the guest in the turn that it has, or has ended.
    pub(super) in_this_turn: u32,
}

impl Connection {
    pub(super) fn new(
        ports: Ports,
        socket_type: SocketType,
        phase: Phase,
        window: u32,
        stream: Option<UnixStream>,
    ) -> Self {
        Self {
            ports: Some(ports),
            socket_type,
            phase,
            due: Due { request: phase == Phase::Requested, ..Due::default() },
            scheduled: false,
            asked_at: None,
            stream,
            backlog: VecDeque::new(),
            messages: Messages::default(),
            window,
            fwd_cnt: Wrapping(0),
            fwd_cnt_told: Wrapping(0),
            guest_sends_no_more: false,
            end_passed_on: false,
            host_takes_no_more: false,
            writable: true,
            rx_cnt: Wrapping(0),
            guest_window: 0,
            guest_fwd_cnt: Wrapping(0),
            guest_takes_no_more: false,
            host_sends_no_more: false,
            // A fresh socket reports its state when it is watched; one that was a client has done so.
            readable: phase == Phase::Requested,
            hung_up: false,
            told_twice: false,
            watched: Watched::FRESH,
            observed: false,
            asked_for_room: false,
            shutdown_told: 0,
            batch: 1,
            in_this_turn: 0,
        }
    }

    pub(super) fn fd(&self) -> Option<RawFd> {
        self.stream.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(super) fn open_with(&mut self, stream: UnixStream) {
        self.stream = Some(stream);
        self.phase = Phase::Open;
        self.due.response = true;
    }

    /// Whether the guest has had the request for less than `patience`.
    pub(super) fn asked_since(&self, now: Instant, patience: Duration) -> bool {
        self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < patience)
    }

    /// Edges reported for the unix socket.
    pub(super) fn note(&mut self, ready: Ready) {
        // Known already: the guest is slower than the host program, whose every write would be told.
        self.told_twice |= self.readable && ready.readable;
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.hung_up |= ready.hung_up;
        if self.hung_up && self.guest_takes_no_more {
            // There is nothing to read out first.
            self.host_sends_no_more = true;
        }
    }

    /// Takes the guest's window from any of its packets.
    pub(super) fn take_credit(&mut self, header: &Header) {
        self.guest_window = header.buf_alloc;
        self.guest_fwd_cnt = Wrapping(header.fwd_cnt);
        self.asked_for_room &= self.guest_room() == 0;
    }

    /// Bytes that the guest has room for. A guest that counts wrongly gets none.
    pub(super) fn guest_room(&self) -> u32 {
        self.guest_window.saturating_sub((self.rx_cnt - self.guest_fwd_cnt).0)
    }

    /// Whether `len` more bytes fit in the window that the guest was told.
    pub(super) fn accepts(&self, len: u32) -> bool {
        !self.guest_sends_no_more
            && self.backlog.len() + len as usize <= self.window as usize
            && self.messages.may_be_one_more(self.window)
    }

    /// Whether data of the guest may go to the unix socket directly.
    pub(super) fn sends_directly(&self) -> Option<RawFd> {
        if self.nothing_stored() && self.writable && !self.host_takes_no_more { self.fd() } else { None }
    }

    /// Whether the guest's data is thrown away, because the host program takes no more.
    pub(super) fn discards(&self) -> bool {
        self.host_takes_no_more
    }

    pub(super) fn store(&mut self, data: &[u8]) {
        self.backlog.extend(data);
    }

    /// `count` bytes of the guest have reached their end.
    pub(super) fn forwarded(&mut self, count: usize) {
        self.fwd_cnt += Wrapping(count as u32);
        let enough = match self.socket_type {
            // Early enough that a fast sender does not stall, late enough to cost little.
            SocketType::Stream => self.window / 2,
            // A message may need all of the window, and only the guest knows whether it waits with one.
            SocketType::Seqpacket => 1,
        };
        if (self.fwd_cnt - self.fwd_cnt_told).0 >= enough {
            self.due.credit_update = true;
        }
    }

    /// The outcome of a direct send, as [`Self::flush`] would have noted it.
    pub(super) fn sent(&mut self, outcome: io::Result<usize>) -> usize {
        match outcome {
            Ok(count) => {
                self.forwarded(count);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                self.host_takes_no_more = true;
                0
            }
        }
    }

    /// Whether the unix socket has been given everything that the guest sent.
    fn nothing_stored(&self) -> bool {
        self.backlog.is_empty() && self.messages.none_stored()
    }

    /// Moves stored bytes to the unix socket, as far as it takes them, and closes what is done.
    pub(super) fn flush(&mut self) {
        match self.socket_type {
            SocketType::Stream => self.flush_bytes(),
            SocketType::Seqpacket => self.flush_messages(),
        }
        if self.host_takes_no_more || self.stream.is_none() || self.message_will_not_end() {
            let rest = self.backlog.len();
            self.backlog.clear();
            self.messages.forget_stored();
            self.forwarded(rest);
        }
        if self.nothing_stored() {
            // A stream that was slow once does not keep its memory for ever.
            self.backlog.shrink_to(0);
            self.pass_shutdown_on();
        }
    }

    fn flush_bytes(&mut self) {
        while self.writable && !self.backlog.is_empty() && !self.host_takes_no_more {
            let Some(fd) = self.fd() else { break };
            let outcome = backend::send(fd, self.backlog.as_slices());
            let count = self.sent(outcome);
            self.backlog.drain(..count.min(self.backlog.len()));
        }
    }

    fn pass_shutdown_on(&mut self) {
        if !self.guest_sends_no_more {
            return;
        }
        if self.guest_takes_no_more || self.ports.is_none() {
            // Closed by the guest and everything delivered: the host program sees the end, the guest the
            // acknowledgement.
            self.stream = None;
            self.due.reset = self.ports.is_some();
        } else if let Some(stream) = &self.stream
            && !std::mem::replace(&mut self.end_passed_on, true)
        {
            // Once only: each call wakes this side too, which would come here again. Fails only if the other
            // side is gone, which the next event tells.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// The guest closes one direction or both.
    pub(super) fn guest_shutdown(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 && !self.guest_takes_no_more {
            self.guest_takes_no_more = true;
            if let Some(stream) = &self.stream {
                let _ = stream.shutdown(Shutdown::Read);
            }
            if self.hung_up {
                self.host_sends_no_more = true;
            }
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends_no_more = true;
        }
        self.flush();
    }

    /// The guest has forgotten the connection; its ports may be used again. True if bytes are still to be
    /// delivered to the host program.
    pub(super) fn orphan(&mut self) -> bool {
        self.ports = None;
        self.due = Due::default();
        self.guest_sends_no_more = true;
        self.guest_takes_no_more = true;
        self.flush();
        !self.finished()
    }

    /// Ends at once; the guest is told, the host program sees the end.
    pub(super) fn fail(&mut self) {
        self.stream = None;
        self.backlog = VecDeque::new();
        self.messages = Messages::default();
        self.due = Due { reset: self.ports.is_some(), ..Due::default() };
    }

    /// Whether a packet is due that must not wait behind data. Window updates can: data carries them.
    pub(super) fn has_due(&self) -> bool {
        self.due.reset || self.due.request || self.due.response || self.due.credit_request
    }

    /// Nothing is left to do.
    pub(super) fn finished(&self) -> bool {
        self.ports.is_none() && self.nothing_stored()
    }

    /// Whether there is data for the guest, or may be.
    pub(super) fn has_data(&self) -> bool {
        self.can_read() || self.message_is_on_its_way()
    }

    /// Whether the host program's data may be read now.
    fn can_read(&self) -> bool {
        self.phase == Phase::Open
            && self.readable
            && !self.guest_takes_no_more
            && !self.host_sends_no_more
            && self.stream.is_some()
    }

    /// `count` bytes went to the guest, of `offered` that it could have had.
    pub(super) fn delivered(&mut self, count: usize, most_buffers: usize, offered: usize) {
        self.rx_cnt += Wrapping(count as u32);
        if count == offered {
            self.batch = (self.batch * 2).min(most_buffers);
        } else if count * 2 < offered {
            self.batch = (self.batch / 2).max(1);
        }
    }

    /// The read said "no more now".
    pub(super) fn read_dry(&mut self) {
        self.readable = false;
        self.told_twice = false;
    }

    /// The read said "no more ever".
    pub(super) fn read_end(&mut self) {
        self.host_sends_no_more = true;
    }

    /// The read failed: the host program went away without reading what was sent to it.
    pub(super) fn read_failed(&mut self) {
        self.host_sends_no_more = true;
        self.host_takes_no_more = true;
        self.due.reset = self.ports.is_some();
    }

    /// The SHUTDOWN flags that the guest has to be told now; 0 for none.
    pub(super) fn shutdown_due(&self) -> u32 {
        if self.phase != Phase::Open {
            return 0;
        }
        let mut flags = 0;
        if self.host_sends_no_more {
            flags |= SHUTDOWN_SEND;
            if self.hung_up {
                flags |= SHUTDOWN_RECEIVE;
            }
        }
        if self.host_takes_no_more {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags & !self.shutdown_told
    }

    /// Whether the guest has to make room before anything more can be sent to it.
    pub(super) fn waits_for_room(&self) -> bool {
        self.ports.is_some() && self.has_data() && self.guest_room() == 0
    }

    /// How much went to the guest so far, modulo 2^32.
    pub(super) fn sent_to_guest(&self) -> u32 {
        self.rx_cnt.0
    }

    /// Whether anything is to be sent to the guest.
    pub(super) fn has_work(&self) -> bool {
        if self.ports.is_none() {
            return false;
        }
        let due = &self.due;
        if due.request || due.response || due.credit_update || due.credit_request || due.reset {
            return true;
        }
        if self.shutdown_due() != 0 {
            return true;
        }
        self.has_data() && self.guest_room() > 0
    }

    /// The next control packet, and takes note that it is sent.
    pub(super) fn next_control(&mut self) -> Option<(Op, u32)> {
        let due = &mut self.due;
        if std::mem::take(&mut due.reset) {
            return Some((Op::Reset, 0));
        }
        if std::mem::take(&mut due.request) {
            self.asked_at = Some(Instant::now());
            return Some((Op::Request, 0));
        }
        if std::mem::take(&mut due.response) {
            return Some((Op::Response, 0));
        }
        if std::mem::take(&mut due.credit_request) {
            return Some((Op::CreditRequest, 0));
        }
        if std::mem::take(&mut due.credit_update) {
            return Some((Op::CreditUpdate, 0));
        }
        let flags = self.shutdown_due();
        if flags == 0 {
            return None;
        }
        self.shutdown_told |= flags;
        if self.shutdown_told == SHUTDOWN_BOTH {
            self.stream = None;
            self.flush();
        }
        Some((Op::Shutdown, self.shutdown_told))
    }

    /// Window and count for the header of a packet that is sent now.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.fwd_cnt_told = self.fwd_cnt;
        self.due.credit_update = false;
        (self.window, self.fwd_cnt.0)
    }
}
