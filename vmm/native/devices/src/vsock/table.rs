//! All streams of the device: by slot (for events), by ports (for packets), and in turn (for fairness).

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;

use super::connection::{Connection, Ports};
use super::queue::SocketType;

/// Names a slot and what was in it at the time: a late event for an old stream finds nothing.
pub(super) type Token = u64;

const GENERATIONS: u32 = 1 << 29;

/// So many streams that are gone may wait for a turn besides those that are there.
const LEFT_BEHIND: usize = 256;

#[derive(Debug)]
pub(super) enum Stream {
    /// A host program that has not said yet where it wants to go.
    Client(UnixStream, SocketType),
    Connection(Box<Connection>),
}

impl Stream {
    fn carries_messages(&self) -> bool {
        let socket_type = match self {
            Self::Client(_, socket_type) => *socket_type,
            Self::Connection(connection) => connection.socket_type,
        };
        socket_type == SocketType::Seqpacket
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    stream: Option<Stream>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// How many carry messages.
    message_sockets: usize,
    by_ports: HashMap<Ports, Token>,
    /// With data for the guest, in turn.
    turn: VecDeque<Token>,
    /// With a packet that opens or ends a connection: these do not wait behind a thousand bulk streams.
    urgent: VecDeque<Token>,
}

fn split(token: Token) -> (usize, u32) {
    ((token & 0xffff_ffff) as usize, (token >> 32) as u32)
}

/// Whether the stream is still there.
fn holds(slots: &[Slot], token: Token) -> bool {
    let (index, generation) = split(token);
    slots.get(index).is_some_and(|slot| slot.generation == generation && slot.stream.is_some())
}

impl Table {
    /// Number of streams of all kinds.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of those that carry messages.
    pub(super) fn message_sockets(&self) -> usize {
        self.message_sockets
    }

    pub(super) fn insert(&mut self, stream: Stream) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let ports = match &stream {
            Stream::Connection(connection) => connection.ports,
            Stream::Client(..) => None,
        };
        self.message_sockets += usize::from(stream.carries_messages());
        let mut token = 0;
        if let Some(slot) = self.slots.get_mut(index) {
            // Never 0: tokens below 2^32 are the device's own.
            slot.generation = slot.generation % GENERATIONS + 1;
            slot.stream = Some(stream);
            token = u64::from(slot.generation) << 32 | index as u64;
        }
        if let Some(ports) = ports {
            self.by_ports.insert(ports, token);
        }
        token
    }

    /// Makes a connection of a client; events go on to carry the same token.
    pub(super) fn promote(
        &mut self,
        token: Token,
        ports: Ports,
        make: impl FnOnce(UnixStream, SocketType) -> Connection,
    ) {
        let (index, generation) = split(token);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.generation != generation {
            return;
        }
        slot.stream = match slot.stream.take() {
            Some(Stream::Client(stream, socket_type)) => {
                self.by_ports.insert(ports, token);
                Some(Stream::Connection(Box::new(make(stream, socket_type))))
            }
            other => other,
        };
    }

    /// Whether the stream is still there.
    pub(super) fn holds(&self, token: Token) -> bool {
        holds(&self.slots, token)
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Stream> {
        let (index, generation) = split(token);
        let slot = self.slots.get_mut(index)?;
        if slot.generation == generation { slot.stream.as_mut() } else { None }
    }

    pub(super) fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        match self.get_mut(token)? {
            Stream::Connection(connection) => Some(connection),
            Stream::Client(..) => None,
        }
    }

    pub(super) fn find(&self, ports: Ports) -> Option<Token> {
        self.by_ports.get(&ports).copied()
    }

    /// Frees the port pair of a stream that lives on as an orphan.
    pub(super) fn release_ports(&mut self, ports: Ports) {
        self.by_ports.remove(&ports);
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<Stream> {
        let (index, generation) = split(token);
        let slot = self.slots.get_mut(index)?;
        if slot.generation != generation {
            return None;
        }
        let stream = slot.stream.take()?;
        self.free.push(index);
        self.message_sockets -= usize::from(stream.carries_messages());
        if let Stream::Connection(connection) = &stream
            && let Some(ports) = connection.ports
        {
            self.by_ports.remove(&ports);
        }
        Some(stream)
    }

    /// Every stream there is.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let occupied = self.slots.iter().enumerate().filter(|(_, slot)| slot.stream.is_some());
        occupied.map(|(index, slot)| u64::from(slot.generation) << 32 | index as u64).collect()
    }

    /// Puts the stream at the end of the queue of those with something for the guest, if it has.
    pub(super) fn schedule(&mut self, token: Token) {
        if let Some(connection) = self.connection(token)
            && !connection.scheduled
            && connection.has_work()
        {
            connection.scheduled = true;
            connection.in_this_turn = 0;
            if connection.has_due() {
                self.urgent.push_back(token)
            } else {
                self.turn.push_back(token)
            }
            self.forget_the_gone();
        }
    }

    /// A guest that takes nothing may make connections and end them as it likes, and each would wait for its turn.
    fn forget_the_gone(&mut self) {
        // Those that are there wait once.
        if self.turn.len() + self.urgent.len() > 2 * self.len() + LEFT_BEHIND {
            let Self { slots, turn, urgent, .. } = self;
            turn.retain(|token| holds(slots, *token));
            urgent.retain(|token| holds(slots, *token));
        }
    }

    /// Whose turn it is.
    pub(super) fn next_turn(&mut self) -> Option<Token> {
        while let Some(token) = self.urgent.pop_front().or_else(|| self.turn.pop_front()) {
            if let Some(connection) = self.connection(token) {
                connection.scheduled = false;
                if connection.has_work() {
                    return Some(token);
                }
            }
        }
        None
    }

    /// It could not be served after all and is the next again.
    pub(super) fn still_its_turn(&mut self, token: Token) {
        if let Some(connection) = self.connection(token) {
            connection.scheduled = true;
            self.urgent.push_front(token);
        }
    }

    /// It is the next of those with data: it was served in part.
    pub(super) fn turn_goes_on(&mut self, token: Token) {
        if let Some(connection) = self.connection(token) {
            connection.scheduled = true;
            self.turn.push_front(token);
        }
    }

    /// Whether anyone waits for a turn.
    pub(super) fn anyone_waits(&self) -> bool {
        !self.turn.is_empty() || !self.urgent.is_empty()
    }
}
