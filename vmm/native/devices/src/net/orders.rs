//! What changes in a running device: by the driver's commands, or by the host's orders.

use std::time::Instant;

use strato_virtio::{DeviceIo, Interest};

use super::backend::Tap;
use super::control::Order;
use super::device::Net;
use super::queue::{self, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MQ};

impl Net {
    pub(super) fn set_pairs(&mut self, pairs: u16) -> bool {
        let allowed = self.transmit_rules.features & VIRTIO_NET_F_MQ != 0
            && (1..=self.pairs.len()).contains(&usize::from(pairs));
        if allowed {
            self.state.pairs = pairs;
            self.attach_used();
            self.mark_all_readable();
        }
        allowed
    }

    /// Changes what the guest takes as it is; only what was negotiated (5.1.6.5.6.2).
    pub(super) fn set_guest_offloads(&mut self, offloads: u64) -> bool {
        let negotiated = queue::guest_offloads(self.transmit_rules.features);
        if offloads & !negotiated != 0 {
            return false;
        }
        let done = self
            .pairs
            .first()
            .is_some_and(|pair| pair.tap.set_offloads(queue::tap_offloads(offloads)).is_ok());
        if done {
            self.state.offloads = offloads;
            self.receive_rules.checksums = offloads & VIRTIO_NET_F_GUEST_CSUM != 0;
        }
        done
    }

    pub(super) fn mark_all_readable(&mut self) {
        for pair in &mut self.pairs {
            pair.receiver.readable = true;
            // The next turn of the crank looks.
            pair.receiver.more = true;
        }
    }

    pub(super) fn carry_out(&mut self, io: &mut DeviceIo<'_>, order: Order) {
        match order {
            Order::Link(up) if up != self.transmit_rules.link_up => {
                self.transmit_rules.link_up = up;
                if up {
                    for pair in &mut self.pairs {
                        pair.receiver.discard_stale(&pair.tap, &self.metrics.rx_stale);
                    }
                    self.mark_all_readable();
                }
                io.notify_config();
            }
            Order::Link(_) => {}
            Order::Announce => {
                if self.transmit_rules.features & VIRTIO_NET_F_GUEST_ANNOUNCE != 0 {
                    self.state.announce = true;
                    io.notify_config();
                }
            }
            Order::ReceiveLimits(limits) => {
                self.receive_rules.limiter.configure(limits, Instant::now());
                // If it is still too early, the next packet arms it again.
                self.receive_rules.timer.disarm();
                self.mark_all_readable();
            }
            Order::TransmitLimits(limits) => {
                self.transmit_rules.limiter.configure(limits, Instant::now());
                self.transmit_rules.timer.disarm();
                self.pairs.iter_mut().for_each(|pair| pair.transmitter.more = true);
            }
            Order::Taps(taps) => self.replace_taps(io, taps),
        }
    }

    fn replace_taps(&mut self, io: &mut DeviceIo<'_>, taps: Vec<Tap>) {
        if taps.len() != self.pairs.len() {
            return;
        }
        let offloads = queue::tap_offloads(self.state.offloads);
        for (index, (pair, tap)) in self.pairs.iter_mut().zip(taps).enumerate() {
            io.events.remove(pair.tap.fd());
            // A tap that knows less than the one before drops what it does not understand.
            let _ = tap.set_offloads(offloads);
            pair.tap = tap;
            pair.attached = true;
            pair.watched = io.events.add(pair.tap.fd(), index as u64, Interest::Edges).is_ok();
            pair.transmitter.blocked = false;
            pair.transmitter.more = true;
        }
        self.mark_all_readable();
        self.attach_used();
    }
}
