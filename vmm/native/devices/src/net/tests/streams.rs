//! Random traffic both ways against a model: nothing lost, doubled or out of order, whatever happens between.

use std::collections::{HashMap, VecDeque};

use strato_virtio::VIRTIO_F_EVENT_IDX;
use strato_virtio::mock::SeededRandom;

use super::guest::{Machine, PLAIN, RX_DATA, TX_DATA, frame, machine};
use crate::net::queue::*;

const SLOT: u64 = 0x4000;

struct Traffic {
    m: Machine,
    random: SeededRandom,
    mergeable: bool,
    /// Receive buffers by head: address and length.
    posted: HashMap<u16, (u64, u32)>,
    free: Vec<u64>,
    /// Packets on their way to the guest and from it.
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
    sent: u64,
    /// Buffers of a packet of which some are still to come.
    partial: (Vec<u8>, u16),
    received: u64,
}

impl Traffic {
    fn new(seed: u64) -> Self {
        let mut random = SeededRandom::new(seed);
        let mergeable = !seed.is_multiple_of(3);
        let features = VIRTIO_NET_F_GUEST_CSUM
            | if mergeable { VIRTIO_NET_F_MRG_RXBUF } else { 0 }
            | if random.below(2) == 0 { VIRTIO_F_EVENT_IDX } else { 0 };
        let mut m = machine(features);
        if features & VIRTIO_F_EVENT_IDX != 0 {
            m.queues.iter_mut().for_each(|queue| queue.use_event_idx());
        }
        Self {
            m,
            random,
            mergeable,
            posted: HashMap::new(),
            free: (0..100).map(|slot| RX_DATA + SLOT * slot).collect(),
            inbound: VecDeque::new(),
            outbound: VecDeque::new(),
            sent: 0,
            partial: (Vec::new(), 0),
            received: 0,
        }
    }

    fn frame_len(&mut self) -> usize {
        let longest = if self.mergeable { 12_000 } else { 1500 };
        14 + self.random.below([60, 1500, longest][self.random.clone().below(3) as usize]) as usize
    }

    fn post(&mut self) {
        for _ in 0..self.random.below(30) {
            let Some(addr) = self.free.pop() else { return };
            let len = if self.mergeable { 100 + self.random.below(2000) as u32 } else { 1526 };
            let cut = 1 + self.random.below(u64::from(len) - 1) as u32;
            let whole = [(addr, len, true)];
            let halves = [(addr, cut, true), (addr + u64::from(cut), len - cut, true)];
            let buffers: &[_] = if self.random.below(2) == 0 { &whole } else { &halves };
            match self.m.queues[0].offer(buffers) {
                Some(head) => drop(self.posted.insert(head, (addr, len))),
                None => return self.free.push(addr),
            }
        }
        self.m.host.kick(0);
    }

    fn send_in(&mut self) {
        for _ in 0..self.random.below(10) {
            let len = self.frame_len();
            let data = frame(self.sent, len);
            if self.m.cables[0].send(PLAIN, &data) {
                self.inbound.push_back(data);
                self.sent += 1;
            }
        }
    }

    fn take_in(&mut self) {
        while let Some((head, len)) = self.m.queues[0].take_used() {
            let (addr, size) = self.posted.remove(&head).unwrap();
            assert!(len <= size);
            let data = self.m.queues[0].read(addr, len as usize);
            self.free.push(addr);
            if self.partial.1 == 0 {
                self.partial.1 = u16::from_le_bytes([data[10], data[11]]);
                assert!(self.partial.1 == 1 || self.mergeable);
            }
            self.partial.0.extend(data);
            self.partial.1 -= 1;
            if self.partial.1 == 0 {
                let packet = std::mem::take(&mut self.partial.0);
                assert_eq!(packet[12..], self.inbound.pop_front().unwrap());
                self.received += 1;
            }
        }
        assert_eq!(self.partial.1, 0, "a packet is shown whole or not at all");
    }

    fn send_out(&mut self) {
        for _ in 0..self.random.below(10) {
            let len = self.frame_len();
            let addr = TX_DATA + SLOT * (self.outbound.len() as u64 % 60);
            if self.outbound.len() >= 60 {
                break;
            }
            let data = frame(self.sent, len);
            self.m.queues[1].write(addr, &[&PLAIN[..], &data].concat());
            if self.m.queues[1].offer(&[(addr, 12 + len as u32, false)]).is_some() {
                self.outbound.push_back(data);
                self.sent += 1;
                // Before the slot is used again, it has been read: one packet per turn and slot.
                self.m.kick(1);
                self.take_out();
            }
        }
    }

    fn take_out(&mut self) {
        while self.m.queues[1].take_used().is_some() {}
        while let Some((_, data)) = self.m.cables[0].receive() {
            assert_eq!(data, self.outbound.pop_front().unwrap());
        }
    }

    fn disturb(&mut self) {
        match self.random.below(20) {
            0 => {
                self.m.host.pause();
                self.m.settle();
                self.m.host.unpause();
            }
            1 | 2 => {
                let queue = self.random.below(2) as u16;
                let position = self.m.host.stop_ring(queue).unwrap();
                self.m.start(queue, position);
            }
            3 => self.m.host.set_memory(self.m.ram.clone()).unwrap(),
            4 => drop(self.m.host.save()),
            _ => {}
        }
    }
}

#[test]
fn random_traffic_arrives_whole_and_in_order() {
    let mut received = 0;
    for seed in 0..30 {
        let mut t = Traffic::new(seed);
        for _ in 0..150 {
            t.post();
            t.send_in();
            t.send_out();
            t.m.host.turn(0).unwrap();
            t.disturb();
            t.take_in();
            t.take_out();
        }
        for _ in 0..500 {
            t.post();
            t.m.settle();
            t.take_in();
            t.take_out();
        }
        assert!(t.inbound.is_empty() && t.outbound.is_empty(), "seed {seed}");
        assert!(t.m.host.fault().is_none());
        received += t.received;
    }
    assert!(received > 5_000);
}
