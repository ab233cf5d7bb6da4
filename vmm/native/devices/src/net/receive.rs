//! From the tap to the guest: one queue's half.
//!
//! The kernel writes each packet straight into the buffers that the driver has posted, all that are needed
//! for the longest packet at once. What does not fit spills over into memory of ours and waits there until
//! the driver posts more, so no packet is lost to a short ring.

use std::io;
use std::sync::atomic::AtomicU64;

use strato_virtio::{Chain, DeviceFault, PostedBuffers, RunningRing};

use super::backend::Tap;
use super::metrics::NetMetrics;
use super::queue::{HEADER_LEN, MAX_PACKET, NUM_BUFFERS_AT};
use crate::limits::Limiter;
use crate::timer::Timer;

/// Packets in one go before other queues have their turn.
const BATCH: usize = 64;
/// Packets of a former time thrown away in one go; taps hold 500 to 1000 by default.
const MAX_STALE: usize = 4096;

/// What is common to the receive halves of all queues.
#[derive(Debug)]
pub(super) struct ReceiveRules {
    /// VIRTIO_NET_F_MRG_RXBUF: a packet may fill several chains.
    pub(super) mergeable: bool,
    /// VIRTIO_NET_F_GUEST_CSUM: the driver looks at the header's flags.
    pub(super) checksums: bool,
    pub(super) limiter: Limiter,
    /// Armed while the limit makes the tap wait.
    pub(super) timer: Timer,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more until the tap, the driver or the timer moves.
    Done,
    /// The batch is full; there may be more.
    More,
}

enum Window {
    /// As many chains as the next packet can need.
    Full,
    /// All that the driver offers now.
    Short,
    /// More cannot be had before some are used.
    Stuck,
}

/// The receive half of one queue pair.
pub(super) struct Receiver {
    posted: PostedBuffers,
    spill: Vec<u8>,
    /// Length of the packet that waits in `spill`; 0 if none does.
    pending: usize,
    /// The tap had more when it was last asked, or has spoken since.
    pub(super) readable: bool,
    /// The turn ended before the work did.
    pub(super) more: bool,
    chain: Chain,
    used: Vec<(u16, u32)>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            posted: PostedBuffers::default(),
            // One byte more, so that what is too long is seen to be.
            spill: vec![0; MAX_PACKET + 1],
            pending: 0,
            readable: false,
            more: false,
            chain: Chain::new(),
            used: Vec::new(),
        }
    }

    /// Moves packets until there are none, or no buffers, or the batch is full.
    pub(super) fn turn(
        &mut self,
        ring: &mut RunningRing<'_>,
        tap: &Tap,
        rules: &mut ReceiveRules,
        metrics: &NetMetrics,
    ) -> Result<Turn, DeviceFault> {
        let mut sum = Sum::default();
        let turn = self.packets(ring, tap, rules, metrics, &mut sum);
        NetMetrics::add(&metrics.rx_packets, sum.packets);
        NetMetrics::add(&metrics.rx_bytes, sum.bytes);
        let turn = turn?;
        self.more = turn == Turn::More;
        ring.notify()?;
        Ok(turn)
    }

    fn packets(
        &mut self,
        ring: &mut RunningRing<'_>,
        tap: &Tap,
        rules: &mut ReceiveRules,
        metrics: &NetMetrics,
        sum: &mut Sum,
    ) -> Result<Turn, DeviceFault> {
        if rules.timer.armed() {
            return Ok(Turn::Done);
        }
        ring.suppress_kicks()?;
        for _ in 0..BATCH {
            let window = self.refill(ring, rules.mergeable, metrics)?;
            if self.pending > 0 {
                if self.pending <= self.posted.len() {
                    self.deliver_pending(ring, rules, sum)?;
                    continue;
                }
                if matches!(window, Window::Short) && self.posted.chains() < usize::from(ring.size()) {
                    return self.starve(ring, metrics);
                }
                self.pending = 0;
                NetMetrics::add(&metrics.rx_too_long, 1);
                continue;
            }
            if self.posted.is_empty() {
                return self.starve(ring, metrics);
            }
            if !self.readable {
                return Ok(Turn::Done);
            }
            if let Err(wait) = rules.limiter.ready() {
                rules.timer.arm(wait);
                NetMetrics::add(&metrics.rx_throttled, 1);
                return Ok(Turn::Done);
            }
            if !self.read(ring, tap, rules, metrics, sum)? {
                return Ok(Turn::Done);
            }
        }
        Ok(Turn::More)
    }

    /// One packet from the tap; false if there is none.
    fn read(
        &mut self,
        ring: &mut RunningRing<'_>,
        tap: &Tap,
        rules: &mut ReceiveRules,
        metrics: &NetMetrics,
        sum: &mut Sum,
    ) -> Result<bool, DeviceFault> {
        let room = self.posted.len();
        let rest = self.spill.get_mut(room.min(MAX_PACKET)..).unwrap_or_default();
        let len = match self.posted.read_packet(tap.fd(), rest) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => {
                // Whatever it is, it is no use to try again before the tap speaks.
                self.readable = false;
                let empty = error.kind() == io::ErrorKind::WouldBlock;
                NetMetrics::add(&metrics.rx_errors, u64::from(!empty));
                return Ok(false);
            }
        };
        if len < HEADER_LEN {
            // A socket whose other end is closed reads as empty packets for ever.
            self.readable = len > 0;
            NetMetrics::add(&metrics.rx_errors, 1);
            return Ok(len > 0);
        }
        rules.limiter.spend((len - HEADER_LEN) as u64);
        if len <= room {
            self.finish(ring, rules, len, sum)?;
        } else if len > MAX_PACKET || !rules.mergeable {
            NetMetrics::add(&metrics.rx_too_long, 1);
        } else {
            let head = self.spill.get_mut(..room).unwrap_or_default();
            self.posted.read(0, head).map_err(|error| ring.fault(error))?;
            self.pending = len;
        }
        Ok(true)
    }

    /// Takes chains from the ring: for the longest packet, or one if packets cannot be merged.
    fn refill(
        &mut self,
        ring: &mut RunningRing<'_>,
        mergeable: bool,
        metrics: &NetMetrics,
    ) -> Result<Window, DeviceFault> {
        for _ in 0..=ring.size() {
            let enough = if mergeable { self.posted.len() >= MAX_PACKET } else { !self.posted.is_empty() };
            if enough {
                return Ok(Window::Full);
            }
            if !self.posted.has_room() {
                return Ok(Window::Stuck);
            }
            if !ring.pop(&mut self.chain)? {
                return Ok(Window::Short);
            }
            let usable = self.chain.writable_len() as usize >= HEADER_LEN
                && self.posted.push(ring.ram_handle(), &self.chain).is_ok();
            if !usable && self.posted.is_empty() {
                ring.complete(self.chain.head(), 0)?;
                NetMetrics::add(&metrics.rx_bad_buffers, 1);
            } else if !usable {
                // Chains go back in the order in which they came.
                ring.unpop();
                return Ok(Window::Stuck);
            }
        }
        // A driver that offers bad buffers as fast as they come back gets no more of this turn.
        Ok(Window::Stuck)
    }

    fn deliver_pending(
        &mut self,
        ring: &mut RunningRing<'_>,
        rules: &ReceiveRules,
        sum: &mut Sum,
    ) -> Result<(), DeviceFault> {
        let len = std::mem::take(&mut self.pending);
        let packet = self.spill.get(..len).unwrap_or_default();
        self.posted.write(0, packet).map_err(|error| ring.fault(error))?;
        self.finish(ring, rules, len, sum)
    }

    /// The first `len` bytes of the window are a packet: the driver gets them.
    fn finish(
        &mut self,
        ring: &mut RunningRing<'_>,
        rules: &ReceiveRules,
        len: usize,
        sum: &mut Sum,
    ) -> Result<(), DeviceFault> {
        // At most as many as a window has, which is far below 65536.
        let buffers = self.posted.chains_for(len) as u16;
        let mut patched = self.posted.write(NUM_BUFFERS_AT, &buffers.to_le_bytes());
        if !rules.checksums {
            // The driver did not learn to read them (5.1.6.4.1).
            patched = patched.and_then(|()| self.posted.write(0, &[0]));
        }
        patched.map_err(|error| ring.fault(error))?;
        self.used.clear();
        self.posted.take(len, &mut self.used);
        ring.complete_all(&self.used)?;
        sum.packets += 1;
        sum.bytes += (len - HEADER_LEN) as u64;
        Ok(())
    }

    /// The driver has too few buffers: it is asked to kick when it has more.
    fn starve(&self, ring: &mut RunningRing<'_>, metrics: &NetMetrics) -> Result<Turn, DeviceFault> {
        if ring.allow_kicks()? {
            return Ok(Turn::More);
        }
        NetMetrics::add(&metrics.rx_starved, u64::from(self.readable));
        Ok(Turn::Done)
    }

    /// Puts the window back into the ring.
    pub(super) fn put_back(&mut self, ring: Option<&mut RunningRing<'_>>) {
        let chains = self.posted.clear();
        if let Some(ring) = ring {
            (0..chains).for_each(|_| ring.unpop());
        }
    }

    /// Throws away what the tap holds from before now.
    pub(super) fn discard_stale(&mut self, tap: &Tap, stale: &AtomicU64) {
        let pending = u64::from(std::mem::take(&mut self.pending) > 0);
        let discarded = (0..MAX_STALE).take_while(|_| tap.discard_packet()).count();
        NetMetrics::add(stale, pending + discarded as u64);
    }
}

#[derive(Default)]
struct Sum {
    packets: u64,
    bytes: u64,
}
