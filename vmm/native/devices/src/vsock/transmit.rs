//! Guest to host: the transmit queue.

use std::io::ErrorKind;
use std::time::Duration;

use strato_virtio::{Chain, ChainError, DeviceFault, DeviceIo, GuestBuffers, Progress, RunningRing};

use super::backend;
use super::connection::{Connection, Phase, Ports, Watched};
use super::device::{TX_QUEUE, Vsock};
use super::metrics::VsockMetrics;
use super::queue::{
    HEADER_LEN, HEADER_OFFSET, HOST_CID, Header, MAX_DATA, Op, SEQ_EOM, SHUTDOWN_BOTH, SocketType,
};
use super::table::{Stream, Token};

/// Packets taken in one go, before other work gets a turn.
const BUDGET: usize = 256;

/// Resets waiting for the guest to take them, after which its packets wait: what the guest makes us say must
/// not grow without bound.
const MAX_REPLIES: usize = 256;

/// The guest hears of packets taken when their pieces would fill this part of its ring, or a moment after the
/// first: it only has memory to free then, and an interrupt for each packet would cost it more than that. Where
/// the guest mostly receives, its window updates are the only packets, so the moment is longer than what lies
/// between two of them.
const UNANNOUNCED_SHARE: u16 = 2;
const ANNOUNCE_AFTER: Duration = Duration::from_millis(5);

impl Vsock {
    /// Takes packets from the guest.
    pub(super) fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        if self.notice.holds() {
            return Ok(Progress::Idle);
        }
        let events = io.events;
        let Some(mut ring) = io.ring(TX_QUEUE) else { return Ok(Progress::Idle) };
        ring.suppress_kicks()?;
        let mut chain = std::mem::take(&mut self.tx_chain);
        let mut outcome = Ok(Progress::Again);
        for _ in 0..BUDGET {
            if self.replies.len() >= MAX_REPLIES {
                // Continued when the guest has taken some: see `receive`.
                self.transmit_waits = true;
                outcome = Ok(Progress::Idle);
                break;
            }
            match ring.pop(&mut chain) {
                Ok(true) => {}
                Ok(false) => match ring.allow_kicks() {
                    Ok(true) => continue,
                    Ok(false) => {
                        outcome = Ok(Progress::Idle);
                        break;
                    }
                    Err(fault) => {
                        outcome = Err(fault);
                        break;
                    }
                },
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
            self.unannounced_pieces += chain.readable().len();
            let taken = self.take_packet(events, &ring, &chain).and_then(|()| ring.complete(chain.head(), 0));
            if let Err(fault) = taken {
                outcome = Err(fault);
                break;
            }
        }
        self.tx_chain = chain;
        let progress = outcome?;
        if self.unannounced_pieces >= usize::from(ring.size() / UNANNOUNCED_SHARE) {
            self.unannounced_pieces = 0;
            ring.notify()?;
        } else if ring.unannounced() > 0 && !self.announcement.armed() {
            self.announcement.arm(ANNOUNCE_AFTER);
        }
        Ok(progress)
    }

    /// Tells the guest of the packets taken.
    pub(super) fn announce_taken(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceFault> {
        self.unannounced_pieces = 0;
        io.ring(TX_QUEUE).map_or(Ok(()), |mut ring| ring.notify())
    }

    fn take_packet(
        &mut self,
        events: &strato_virtio::Events,
        ring: &RunningRing<'_>,
        chain: &Chain,
    ) -> Result<(), DeviceFault> {
        VsockMetrics::add(&self.metrics.tx_packets, 1);
        let mut raw = [0; HEADER_LEN];
        if ring.read(chain, 0, &mut raw).is_err() {
            VsockMetrics::add(&self.metrics.refused, 1);
            return Ok(());
        }
        // From here on the copy counts; the guest may change its own as it likes.
        let header = Header::parse(&raw);
        let data = chain.readable_len() - HEADER_OFFSET;
        if header.src_cid != self.config.guest_cid {
            VsockMetrics::add(&self.metrics.refused, 1);
            return Ok(());
        }
        let wrong = header.dst_cid != HOST_CID || header.len > MAX_DATA || header.len > data;
        let socket_type = SocketType::from_number(header.socket_type).filter(|it| self.carries(*it));
        let Some(socket_type) = socket_type.filter(|_| !wrong) else {
            self.refuse(&header);
            return Ok(());
        };
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let Some(token) = self.table.find(ports) else {
            match header.op {
                Op::Request => self.connect_to_host(events, &header, ports, socket_type),
                // Answering a reset with a reset would never end.
                Op::Reset => {}
                _ => self.refuse(&header),
            }
            return Ok(());
        };
        if self.table.connection(token).is_some_and(|connection| connection.socket_type != socket_type) {
            self.refuse(&header);
            return Ok(());
        }
        self.connection_packet(ring, chain, &header, token)?;
        self.watch_otherwise(events, token);
        Ok(())
    }

    /// Answers with a reset; the connection, if any, is not touched.
    fn refuse(&mut self, header: &Header) {
        VsockMetrics::add(&self.metrics.refused, 1);
        if header.op != Op::Reset {
            self.replies.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                len: 0,
                socket_type: header.socket_type,
                op: Op::Reset,
                flags: 0,
                buf_alloc: 0,
                fwd_cnt: 0,
            });
        }
    }

    fn connect_to_host(
        &mut self,
        events: &strato_virtio::Events,
        header: &Header,
        ports: Ports,
        socket_type: SocketType,
    ) {
        if !self.has_room_for(socket_type) {
            return self.refuse(header);
        }
        let (stream, phase) = match backend::dial(&self.config.path, ports.host, socket_type) {
            Ok(stream) => (Some(stream), Phase::Open),
            Err(error) if error.kind() == ErrorKind::WouldBlock => (None, Phase::Dialling),
            Err(_) => return self.refuse(header),
        };
        let mut connection = Connection::new(ports, socket_type, phase, self.window(socket_type), stream);
        connection.take_credit(header);
        connection.due.response = phase == Phase::Open;
        let fd = connection.fd();
        let token = self.table.insert(Stream::Connection(Box::new(connection)));
        VsockMetrics::add(&self.metrics.opened, 1);
        match fd {
            Some(fd) if events.add(fd, token, Watched::FRESH.interest()).is_err() => {
                self.reset_connection(token)
            }
            Some(_) => self.table.schedule(token),
            None => self.dial_again(token),
        }
    }

    fn connection_packet(
        &mut self,
        ring: &RunningRing<'_>,
        chain: &Chain,
        header: &Header,
        token: Token,
    ) -> Result<(), DeviceFault> {
        let Some(connection) = self.table.connection(token) else { return Ok(()) };
        connection.take_credit(header);
        match (header.op, connection.phase) {
            (Op::Reset, _) => self.reset_by_guest(token),
            (Op::Response, Phase::Requested) => self.accepted_by_guest(token),
            (Op::ReadWrite, Phase::Open) => {
                if !connection.accepts(header.len) {
                    VsockMetrics::add(&self.metrics.refused, 1);
                    self.reset_connection(token);
                    return Ok(());
                }
                VsockMetrics::add(&self.metrics.tx_bytes, header.len as usize);
                let passed_on = match connection.socket_type {
                    SocketType::Stream => forward(ring, chain, header.len, connection),
                    SocketType::Seqpacket => forward_message(ring, chain, header, connection),
                };
                passed_on.map_err(|error| ring.fault(error))?;
                self.table.schedule(token);
            }
            (Op::Shutdown, Phase::Open) => {
                connection.guest_shutdown(header.flags & SHUTDOWN_BOTH);
                self.table.schedule(token);
            }
            (Op::CreditUpdate, _) => self.table.schedule(token),
            (Op::CreditRequest, _) => {
                connection.due.credit_update = true;
                self.table.schedule(token);
            }
            // A second request for a pair of ports that is in use, an answer nobody asked for, data before
            // the connection stands, an operation that does not exist.
            _ => {
                VsockMetrics::add(&self.metrics.refused, 1);
                self.reset_connection(token);
            }
        }
        Ok(())
    }
}

/// Hands the packet's data to the unix socket, and stores what that does not take.
fn forward(
    ring: &RunningRing<'_>,
    chain: &Chain,
    len: u32,
    connection: &mut Connection,
) -> Result<(), ChainError> {
    let mut done = 0;
    while done < len {
        if connection.discards() {
            connection.forwarded((len - done) as usize);
            return Ok(());
        }
        let Some(fd) = connection.sends_directly() else { break };
        let mut buffers = GuestBuffers::new(ring.ram());
        match buffers.push_readable(chain, HEADER_OFFSET + done, (len - done) as usize) {
            // In more pieces than one system call takes: copied below.
            Err(ChainError::TooLong) => break,
            other => other?,
        }
        let outcome = buffers.send_to(fd);
        done += connection.sent(outcome) as u32;
    }
    if done < len {
        let mut rest = vec![0; (len - done) as usize];
        ring.read(chain, HEADER_OFFSET + done, &mut rest)?;
        connection.store(&rest);
        connection.flush();
    }
    Ok(())
}

/// As [`forward`], for a packet that is a message or a part of one: passed on when the message has ended.
fn forward_message(
    ring: &RunningRing<'_>,
    chain: &Chain,
    header: &Header,
    connection: &mut Connection,
) -> Result<(), ChainError> {
    let (len, ends) = (header.len as usize, header.flags & SEQ_EOM != 0);
    if ends && let Some(fd) = connection.sends_directly() {
        let mut buffers = GuestBuffers::new(ring.ram());
        match buffers.push_readable(chain, HEADER_OFFSET, len) {
            Ok(()) if connection.message_sent(buffers.send_to(fd)) => return Ok(()),
            // Not now, or in more pieces than one system call takes: copied below.
            Ok(()) | Err(ChainError::TooLong) => {}
            Err(error) => return Err(error),
        }
    }
    let mut data = vec![0; len];
    ring.read(chain, HEADER_OFFSET, &mut data)?;
    connection.store_message(&data, ends);
    Ok(())
}
