//! The host's side of opening connections: host programs that come, and programs that the guest wants.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use strato_virtio::Events;

use super::backend::{dial, receive_first_line, receive_first_message, send};
use super::connection::{Connection, MAX_MESSAGE, Phase, Ports, Watched};
use super::device::Vsock;
use super::metrics::VsockMetrics;
use super::queue::SocketType;
use super::table::{Stream, Token};

/// Host ports of host-initiated connections begin here, far from those that anyone listens on.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

/// What all windows together are measured by. One connection of many gets a smaller one.
const WINDOW_BUDGET: usize = 32 << 20;
const MAX_WINDOW: usize = 256 << 10;
const MIN_WINDOW: usize = 16 << 10;

/// Most connections that carry messages. Each may have the guest make this process hold a window of bytes, as many
/// lengths, and one message of the host program.
const MAX_MESSAGE_SOCKETS: usize = 256;

/// A stream has two deadlines at most: for its first line, and for the guest's answer. Twice as many make it cheap to
/// tell them from those of streams that are gone.
const DEADLINES_OF_A_STREAM: usize = 4;
/// So many of streams that are gone are kept even if there are no others.
const LEFT_BEHIND: usize = 256;

/// Host programs taken in at one event.
const ACCEPTS: usize = 64;

impl Vsock {
    /// The window of a new connection.
    pub(super) fn window(&self, socket_type: SocketType) -> u32 {
        if socket_type == SocketType::Seqpacket {
            // Not by the number of connections: the longest message would change with it.
            return MAX_MESSAGE as u32;
        }
        let share = WINDOW_BUDGET / (self.table.len() + 1);
        share.clamp(MIN_WINDOW, MAX_WINDOW) as u32
    }

    /// Whether there may be one more connection of that type.
    pub(super) fn has_room_for(&self, socket_type: SocketType) -> bool {
        self.table.len() < self.config.max_connections
            && (socket_type == SocketType::Stream || self.table.message_sockets() < MAX_MESSAGE_SOCKETS)
    }

    fn start_waiting(&mut self, token: Token) {
        self.deadlines.push_back((Instant::now() + self.patience, token));
        self.forget_the_gone();
        self.set_timer();
    }

    /// A guest may make connections and take them back as fast as it likes: what waits for its time must not grow
    /// with those that are gone.
    pub(super) fn forget_the_gone(&mut self) {
        let Self { table, deadlines, dialling, observed, .. } = self;
        if deadlines.len().max(observed.len()) > DEADLINES_OF_A_STREAM * table.len() + LEFT_BEHIND {
            deadlines.retain(|(_, token)| table.holds(*token));
            observed.retain(|(_, token, _)| table.holds(*token));
            // Each of these has a deadline too.
            dialling.retain(|token| table.holds(*token));
        }
    }

    /// The host program's backlog is full: ask again soon.
    pub(super) fn dial_again(&mut self, token: Token) {
        self.dialling.push(token);
        self.start_waiting(token);
    }

    pub(super) fn dial(&mut self, events: &Events, token: Token) {
        let Some(connection) = self.table.connection(token) else { return };
        let Some(ports) = connection.ports else { return };
        match dial(&self.config.path, ports.host, connection.socket_type) {
            Ok(stream) if events.add(stream.as_raw_fd(), token, Watched::FRESH.interest()).is_ok() => {
                connection.open_with(stream);
                self.table.schedule(token);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dialling.push(token),
            _ => self.reset_connection(token),
        }
    }

    /// The guest took a host program's connection.
    pub(super) fn accepted_by_guest(&mut self, token: Token) {
        let Some(connection) = self.table.connection(token) else { return };
        connection.phase = Phase::Open;
        let answer = connection.ports.map_or_else(String::new, |ports| format!("OK {}\n", ports.host));
        // The socket is fresh: it takes this much, or the host program is gone.
        let sent = connection.fd().map(|fd| send(fd, (answer.as_bytes(), &[])));
        if matches!(sent, Some(Ok(count)) if count == answer.len()) {
            self.table.schedule(token);
        } else {
            self.reset_connection(token);
        }
    }

    pub(super) fn accept(&mut self, events: &Events, socket_type: SocketType) {
        for _ in 0..ACCEPTS {
            let stream = match self.listener(socket_type).0.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(_) => {
                    // No descriptors left, most likely. The listener would be reported again and again, so it
                    // is put aside for a while; host programs wait in its backlog.
                    events.remove(self.listener(socket_type).0.fd());
                    self.listeners_aside = true;
                    return self.set_timer();
                }
            };
            if !self.has_room_for(socket_type) {
                continue;
            }
            let fd = stream.as_raw_fd();
            let token = self.table.insert(Stream::Client(stream, socket_type));
            if events.add(fd, token, Watched::FRESH.interest()).is_err() {
                self.table.remove(token);
                continue;
            }
            self.start_waiting(token);
        }
    }

    /// A host program may have said where it wants to go.
    pub(super) fn hear_client(&mut self, token: Token) {
        let Some(&mut Stream::Client(ref stream, socket_type)) = self.table.get_mut(token) else { return };
        let heard = match socket_type {
            SocketType::Stream => receive_first_line(stream),
            SocketType::Seqpacket => receive_first_message(stream).map(Some),
        };
        let guest = match heard {
            Ok(Some(port)) => port,
            Ok(None) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.forget(token),
        };
        if !self.carries(socket_type) {
            // No driver yet, or one that would not understand.
            return self.forget(token);
        }
        let ports = Ports { host: self.free_host_port(guest), guest };
        let window = self.window(socket_type);
        self.table.promote(token, ports, |stream, socket_type| {
            Connection::new(ports, socket_type, Phase::Requested, window, Some(stream))
        });
        VsockMetrics::add(&self.metrics.opened, 1);
        // The first line had its time; the guest gets its own.
        self.start_waiting(token);
        self.table.schedule(token);
    }

    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT).max(FIRST_HOST_PORT);
            // Ends: there are far fewer streams than ports.
            if self.table.find(Ports { host, guest }).is_none() {
                return host;
            }
        }
    }
}
