//! From the guest to the tap: one queue's half.

use std::io;

use strato_virtio::{Chain, DeviceFault, GuestBuffers, IovecStorage, RunningRing};

use super::backend::Tap;
use super::metrics::NetMetrics;
use super::queue::{self, HEADER_LEN};
use super::receive::Turn;
use crate::limits::Limiter;
use crate::timer::Timer;

/// Packets in one go before other queues have their turn.
const BATCH: usize = 128;

/// What is common to the transmit halves of all queues.
#[derive(Debug)]
pub(super) struct TransmitRules {
    pub(super) features: u64,
    pub(super) link_up: bool,
    pub(super) limiter: Limiter,
    /// Armed while the limit makes the guest wait.
    pub(super) timer: Timer,
}

/// The transmit half of one queue pair.
#[derive(Debug, Default)]
pub(super) struct Transmitter {
    chain: Chain,
    storage: IovecStorage,
    /// The tap has no room; it will say when it has.
    pub(super) blocked: bool,
    /// The limit has let the packet through that the tap had no room for.
    admitted: bool,
    /// The turn ended before the work did.
    pub(super) more: bool,
}

enum Sent {
    Yes(u64),
    No(Fate),
}

enum Fate {
    Bad,
    LinkDown,
    Refused,
    Blocked,
    Throttled,
}

impl Transmitter {
    /// Moves packets until there are none, or the tap has no room, or the batch is full.
    pub(super) fn turn(
        &mut self,
        ring: &mut RunningRing<'_>,
        tap: &Tap,
        rules: &mut TransmitRules,
        metrics: &NetMetrics,
    ) -> Result<Turn, DeviceFault> {
        let (mut packets, mut bytes) = (0, 0);
        let turn = self.packets(
            ring,
            rules,
            |sent| match sent {
                Sent::Yes(len) => {
                    packets += 1;
                    bytes += len;
                }
                Sent::No(Fate::Bad) => NetMetrics::add(&metrics.tx_bad_packets, 1),
                Sent::No(Fate::LinkDown) => NetMetrics::add(&metrics.tx_link_down, 1),
                Sent::No(Fate::Refused) => NetMetrics::add(&metrics.tx_errors, 1),
                Sent::No(Fate::Blocked) => NetMetrics::add(&metrics.tx_blocked, 1),
                Sent::No(Fate::Throttled) => NetMetrics::add(&metrics.tx_throttled, 1),
            },
            tap,
        );
        NetMetrics::add(&metrics.tx_packets, packets);
        NetMetrics::add(&metrics.tx_bytes, bytes);
        let turn = turn?;
        self.more = turn == Turn::More;
        ring.notify()?;
        Ok(turn)
    }

    fn packets(
        &mut self,
        ring: &mut RunningRing<'_>,
        rules: &mut TransmitRules,
        mut count: impl FnMut(&Sent),
        tap: &Tap,
    ) -> Result<Turn, DeviceFault> {
        if self.blocked || rules.timer.armed() {
            return Ok(Turn::Done);
        }
        ring.suppress_kicks()?;
        for _ in 0..BATCH {
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                return Ok(Turn::Done);
            }
            let sent = self.send(ring, rules, tap);
            count(&sent);
            if let Sent::No(Fate::Blocked | Fate::Throttled) = sent {
                // The driver keeps its packet in the ring; the tap or the timer brings us back to it.
                ring.unpop();
                self.blocked = matches!(sent, Sent::No(Fate::Blocked));
                self.admitted = self.blocked;
                return Ok(Turn::Done);
            }
            ring.complete(self.chain.head(), 0)?;
        }
        Ok(Turn::More)
    }

    fn send(&mut self, ring: &RunningRing<'_>, rules: &mut TransmitRules, tap: &Tap) -> Sent {
        let mut raw = [0; HEADER_LEN];
        let frame_len = (self.chain.readable_len() as usize).saturating_sub(HEADER_LEN);
        let header = match ring.read(&self.chain, 0, &mut raw) {
            Ok(()) => queue::checked_header(&raw, frame_len, rules.features),
            Err(_) => None,
        };
        let Some(mut header) = header else { return Sent::No(Fate::Bad) };
        if !rules.link_up {
            return Sent::No(Fate::LinkDown);
        }
        if !std::mem::take(&mut self.admitted)
            && let Err(wait) = rules.limiter.admit(frame_len as u64)
        {
            rules.timer.arm(wait);
            return Sent::No(Fate::Throttled);
        }
        // The header as it was checked, from our own memory; the rest from the guest's.
        let storage = std::mem::take(&mut self.storage);
        let mut packet = GuestBuffers::with_own(ring.ram(), storage, &mut header);
        let written = match packet.push_readable(&self.chain, HEADER_LEN as u32, frame_len) {
            Ok(()) => write(&mut packet, tap),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        };
        self.storage = packet.into_storage();
        match written {
            Ok(()) => Sent::Yes(frame_len as u64),
            Err(error) => Sent::No(match error.kind() {
                io::ErrorKind::WouldBlock => Fate::Blocked,
                io::ErrorKind::InvalidData => Fate::Bad,
                // Down (EIO), gone (EBADFD), or it does not like the packet: lost, as on a cable.
                _ => Fate::Refused,
            }),
        }
    }
}

fn write(packet: &mut GuestBuffers<'_>, tap: &Tap) -> io::Result<()> {
    loop {
        match packet.write_packet(tap.fd()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
