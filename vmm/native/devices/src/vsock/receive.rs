//! Host to guest: the receive queue.

use std::io;

use strato_virtio::{Chain, ChainError, DeviceFault, DeviceIo, Events, GuestBuffers, Progress, RunningRing};

use super::connection::Connection;
use super::device::{RX_QUEUE, TX_QUEUE, Vsock};
use super::metrics::VsockMetrics;
use super::queue::{HEADER_OFFSET, HOST_CID, Header, MAX_DATA, Op, SEQ_EOM, SocketType};
use super::table::Token;

/// Guest buffers filled in one go, before other work gets a turn.
const BUDGET: usize = 512;

/// Guest buffers that one read of a unix socket may fill: Linux offers buffers of less than 4 KiB, and one
/// system call for each would be most of the cost.
pub(super) const BATCH: usize = 48;

/// Bytes that one read takes at most: near to what a unix socket holds, so that the guest's program finds much
/// on a few streams rather than a little on many.
const MOST_IN_A_TURN: u32 = 160 * 1024;

/// What became of a turn.
enum Turn {
    /// Packets were sent.
    Sent(usize),
    /// As `Sent`, but the guest had fewer buffers than there is data: the turn goes on with its next ones. The
    /// guest's program then finds it all when it is woken, instead of being woken for each piece.
    CutShort(usize),
    /// There was nothing after all.
    Nothing,
    /// The guest has no buffers.
    NoBuffers,
}

impl Vsock {
    /// Sends what is due, one stream after the other, as long as the guest has buffers.
    pub(super) fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        // A driver that is only half there may still be replaced by a new one: see `queue_started`.
        if self.notice.holds() || io.ring(TX_QUEUE).is_none() {
            return Ok(Progress::Idle);
        }
        let events = io.events;
        let Some(mut ring) = io.ring(RX_QUEUE) else { return Ok(Progress::Idle) };
        let mut budget = BUDGET;
        let mut starved = false;
        while budget > 0 && !starved && (!self.replies.is_empty() || self.table.anyone_waits()) {
            let turn = if self.replies.is_empty() {
                self.one_turn(events, &mut ring)?
            } else {
                self.one_reply(&mut ring)?
            };
            match turn {
                Turn::Sent(packets) | Turn::CutShort(packets) => budget = budget.saturating_sub(packets),
                Turn::Nothing => {}
                // Only now are kicks wanted: the guest refills all the time.
                Turn::NoBuffers => starved = !ring.allow_kicks()?,
            }
        }
        if budget < BUDGET {
            if !starved {
                ring.suppress_kicks()?;
            }
            ring.notify()?;
        }
        if budget == 0 { Ok(Progress::Again) } else { Ok(Progress::Idle) }
    }

    fn one_reply(&mut self, ring: &mut RunningRing<'_>) -> Result<Turn, DeviceFault> {
        let Some(header) = self.replies.front().copied() else { return Ok(Turn::Nothing) };
        let mut chain = std::mem::take(&mut self.tx_chain);
        let sent = pop_usable(ring, &mut chain).and_then(|found| {
            if found {
                put(ring, &chain, &header)?
            }
            Ok(found)
        });
        self.tx_chain = chain;
        if !sent? {
            return Ok(Turn::NoBuffers);
        }
        self.replies.pop_front();
        VsockMetrics::add(&self.metrics.rx_packets, 1);
        Ok(Turn::Sent(1))
    }

    fn one_turn(&mut self, events: &Events, ring: &mut RunningRing<'_>) -> Result<Turn, DeviceFault> {
        let Some(token) = self.table.next_turn() else { return Ok(Turn::Nothing) };
        let mut chains = std::mem::take(&mut self.rx_chains);
        let turn = self.serve(ring, token, &mut chains);
        self.rx_chains = chains;
        match &turn {
            Ok(Turn::NoBuffers) => self.table.still_its_turn(token),
            Ok(Turn::CutShort(_)) => self.table.turn_goes_on(token),
            Ok(_) => {
                self.table.schedule(token);
                self.observe(token);
                self.watch_otherwise(events, token);
            }
            Err(_) => {}
        }
        turn
    }

    fn serve(
        &mut self,
        ring: &mut RunningRing<'_>,
        token: Token,
        chains: &mut [Chain],
    ) -> Result<Turn, DeviceFault> {
        let guest_cid = self.config.guest_cid;
        let Some(connection) = self.table.connection(token) else { return Ok(Turn::Nothing) };
        let Some(first) = chains.first_mut() else { return Ok(Turn::Nothing) };
        // What is due comes before data (an answer must be the first packet), except for the end of the
        // stream, which `next_control` gives only when all data was read.
        let data_first = !connection.has_due() && connection.has_data() && connection.guest_room() > 0;
        if data_first {
            return match connection.socket_type {
                SocketType::Stream => send_data(ring, connection, guest_cid, chains, &self.metrics),
                SocketType::Seqpacket => send_message(ring, connection, guest_cid, first, &self.metrics),
            };
        }
        if !pop_usable(ring, first)? {
            return Ok(Turn::NoBuffers);
        }
        let Some((op, flags)) = connection.next_control() else {
            ring.unpop();
            return Ok(Turn::Nothing);
        };
        let header = header(connection, guest_cid, op, flags, 0);
        put(ring, first, &header)?;
        VsockMetrics::add(&self.metrics.rx_packets, 1);
        if op == Op::Reset {
            self.forget(token);
        }
        Ok(Turn::Sent(1))
    }
}

/// Reads from the unix socket straight into guest buffers, several packets at a time.
fn send_data(
    ring: &mut RunningRing<'_>,
    connection: &mut Connection,
    guest_cid: u64,
    chains: &mut [Chain],
    metrics: &VsockMetrics,
) -> Result<Turn, DeviceFault> {
    let Some(fd) = connection.fd() else { return Ok(Turn::Nothing) };
    let most = MOST_IN_A_TURN.saturating_sub(connection.in_this_turn);
    let room = connection.guest_room().min(most) as usize;
    let mut dry = false;
    let mut buffers = GuestBuffers::new(ring.ram());
    let mut popped = 0;
    for chain in chains.iter_mut().take(connection.batch) {
        if buffers.len() >= room {
            break;
        }
        let found = if popped == 0 { pop_usable(ring, chain)? } else { ring.pop(chain)? };
        if !found {
            dry = true;
            break;
        }
        let len = capacity(chain).min(room - buffers.len());
        match buffers.push_writable(chain, HEADER_OFFSET.min(chain.writable_len()), len) {
            // Useless, or in more pieces than one system call takes: the next read begins with it.
            Ok(()) if len == 0 => {}
            Err(ChainError::TooLong) if popped > 0 => {}
            other => {
                other.map_err(|error| ring.fault(error))?;
                popped += 1;
                continue;
            }
        }
        ring.unpop();
        break;
    }
    if popped == 0 {
        return Ok(Turn::NoBuffers);
    }
    let offered = buffers.len();
    let outcome = buffers.receive_from(fd);
    let received = *outcome.as_ref().unwrap_or(&0);
    let mut left = received;
    let mut used = 0;
    if received > 0 {
        connection.delivered(received, chains.len(), offered);
    }
    for chain in chains.iter().take(popped) {
        let len = capacity(chain).min(left);
        if len == 0 {
            break;
        }
        let header = header(connection, guest_cid, Op::ReadWrite, 0, len);
        put(ring, chain, &header)?;
        left -= len;
        used += 1;
    }
    for _ in used..popped {
        ring.unpop();
    }
    VsockMetrics::add(&metrics.rx_packets, used);
    VsockMetrics::add(&metrics.rx_bytes, received);
    match outcome {
        Ok(0) => connection.read_end(),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.read_dry(),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(_) => connection.read_failed(),
    }
    if used == 0 {
        return Ok(Turn::Nothing);
    }
    connection.in_this_turn += received as u32;
    let more = received == offered && connection.in_this_turn < MOST_IN_A_TURN && connection.guest_room() > 0;
    Ok(if dry && more { Turn::CutShort(used) } else { Turn::Sent(used) })
}

/// Sends pieces of the host program's message, as far as the guest has buffers and room.
fn send_message(
    ring: &mut RunningRing<'_>,
    connection: &mut Connection,
    guest_cid: u64,
    chain: &mut Chain,
    metrics: &VsockMetrics,
) -> Result<Turn, DeviceFault> {
    if !connection.fetch_message() {
        return Ok(Turn::Nothing);
    }
    let mut packets = 0;
    while packets < BATCH && pop_usable(ring, chain)? {
        let room = connection.guest_room() as usize;
        let Some((piece, last)) = connection.next_piece(capacity(chain).min(room)) else { break };
        let len = piece.len();
        ring.write(chain, HEADER_OFFSET, piece).map_err(|error| ring.fault(error))?;
        let flags = if last { SEQ_EOM } else { 0 };
        let header = header(connection, guest_cid, Op::ReadWrite, flags, len);
        put(ring, chain, &header)?;
        connection.piece_delivered(len, last);
        VsockMetrics::add(&metrics.rx_bytes, len);
        packets += 1;
        if last || connection.guest_room() == 0 {
            break;
        }
    }
    VsockMetrics::add(&metrics.rx_packets, packets);
    Ok(if packets > 0 { Turn::Sent(packets) } else { Turn::NoBuffers })
}

/// Data bytes that a guest buffer holds besides the header.
fn capacity(chain: &Chain) -> usize {
    chain.writable_len().saturating_sub(HEADER_OFFSET).min(MAX_DATA) as usize
}

/// The next guest buffer that holds a header and some data; smaller ones go back empty.
fn pop_usable(ring: &mut RunningRing<'_>, chain: &mut Chain) -> Result<bool, DeviceFault> {
    for _ in 0..=ring.size() {
        if !ring.pop(chain)? {
            return Ok(false);
        }
        if capacity(chain) > 0 {
            return Ok(true);
        }
        ring.complete(chain.head(), 0)?;
    }
    Err(ring.fault(ChainError::Range))
}

fn put(ring: &mut RunningRing<'_>, chain: &Chain, header: &Header) -> Result<(), DeviceFault> {
    ring.write(chain, 0, &header.to_bytes()).map_err(|error| ring.fault(error))?;
    ring.complete(chain.head(), HEADER_OFFSET + header.len)
}

fn header(connection: &mut Connection, guest_cid: u64, op: Op, flags: u32, len: usize) -> Header {
    let (buf_alloc, fwd_cnt) = connection.tell_credit();
    let (host, guest) = connection.ports.map_or((0, 0), |ports| (ports.host, ports.guest));
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: host,
        dst_port: guest,
        len: len as u32,
        socket_type: connection.socket_type.number(),
        op,
        flags,
        buf_alloc,
        fwd_cnt,
    }
}
