//! A driver that breaks the protocol: the device asks for a reset or goes on, and the process lives.

use strato_virtio::Notification;
use strato_virtio::mock::{Descriptor, NEXT, SeededRandom, WRITE};

use super::guest::{Machine, PLAIN, RAM, RX_DATA, TX_DATA, frame, machine};
use crate::net::queue::*;

const FEATURES: u64 = VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CSUM;

fn breaks(queue: u16, lie: impl FnOnce(&mut Machine, usize)) {
    let mut m = machine(FEATURES);
    lie(&mut m, usize::from(queue));
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.kick(queue);
    assert!(m.host.fault().is_some(), "queue {queue}");
    assert!(m.notifier.take().contains(&Notification::NeedsReset));
    // It stands still until it is reset, and costs nothing.
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.settle();
    m.host.reset();
    assert!(m.host.fault().is_none());
}

#[test]
fn broken_chains_on_any_queue_ask_for_a_reset() {
    let bad: [fn(u16) -> [Descriptor; 2]; 5] = [
        // A loop, an end outside of the table, memory that is not there (begin, end), and a wrong order.
        |_| [Descriptor { addr: TX_DATA, len: 8, flags: NEXT, next: 0 }; 2],
        |_| [Descriptor { addr: TX_DATA, len: 8, flags: NEXT, next: 9999 }; 2],
        |w| [Descriptor { addr: 1 << 40, len: 8, flags: w, next: 0 }; 2],
        |w| [Descriptor { addr: RAM as u64 - 8, len: 9, flags: w, next: 0 }; 2],
        |_| {
            [
                Descriptor { addr: TX_DATA, len: 8, flags: WRITE | NEXT, next: 1 },
                Descriptor { addr: TX_DATA, len: 8, flags: 0, next: 0 },
            ]
        },
    ];
    for queue in 0..3 {
        for make in bad {
            breaks(queue, |m, at| {
                let flags = if queue == 1 { 0 } else { WRITE };
                for (index, descriptor) in make(flags).into_iter().enumerate() {
                    m.queues[at].write_descriptor(index as u16, descriptor);
                }
                m.queues[at].publish(0);
            });
        }
    }
}

#[test]
fn heads_and_indices_out_of_range_ask_for_a_reset() {
    for queue in 0..3 {
        breaks(queue, |m, at| m.queues[at].publish(256));
        breaks(queue, |m, at| m.queues[at].set_avail_idx(257));
    }
}

#[test]
fn receive_buffers_without_room_for_a_header_come_back_empty() {
    let mut m = machine(FEATURES);
    m.post(RX_DATA, 11);
    m.queues[0].offer(&[(RX_DATA, 2000, false)]).unwrap();
    m.queues[0].offer(&[(RX_DATA, 0, true)]).unwrap();
    m.post(RX_DATA + 4096, 100);
    m.post(RX_DATA, 5);
    m.post(RX_DATA + 8192, 100);
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.cables[0].send(PLAIN, &frame(2, 60));
    m.kick(0);
    let lens: Vec<u32> = std::iter::from_fn(|| m.queues[0].take_used()).map(|used| used.1).collect();
    assert_eq!(lens, [0, 0, 0, 72, 0, 72]);
    assert_eq!(m.count("rx_bad_buffers"), 4);
}

#[test]
fn stop_with_a_bad_buffer_behind_good_ones_gives_back_each_once() {
    let mut m = machine(FEATURES);
    m.post(RX_DATA, 2000);
    m.post(RX_DATA, 3);
    m.post(RX_DATA + 4096, 2000);
    m.kick(0);
    assert_eq!(m.host.stop_ring(0), Some(0));
    m.start(0, 0);
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.settle();
    assert_eq!(m.queues[0].take_used().map(|used| used.1), Some(72));
}

#[test]
fn header_that_changes_after_it_was_read_changes_nothing() {
    // The tap gets the device's own copy of the header; the chain's first bytes are never looked at again.
    let mut m = machine(FEATURES);
    let good = PLAIN;
    m.queues[1].write(TX_DATA, &[&good[..], &frame(1, 60)].concat());
    // The frame overlaps the header, so that a second look would see other bytes than the first.
    m.queues[1].offer(&[(TX_DATA, 12, false), (TX_DATA, 72, false)]).unwrap();
    m.kick(1);
    assert_eq!(m.cables[0].receive().unwrap().0, good);
}

#[test]
fn overlapping_and_huge_buffers_are_only_memory() {
    let mut m = machine(FEATURES);
    for _ in 0..4 {
        m.post(RX_DATA, 1 << 20);
    }
    m.queues[0].offer(&[(RX_DATA, 3 << 19, true), (RX_DATA, 3 << 19, true)]).unwrap();
    m.kick(0);
    for number in 0..5 {
        m.cables[0].send(PLAIN, &frame(number, 60_000));
        m.settle();
    }
    assert_eq!(m.count("rx_packets"), 5);
}

#[test]
fn random_rings_never_harm_the_process() {
    for seed in 0..100 {
        let mut random = SeededRandom::new(seed);
        let mut m = machine(FEATURES);
        for _ in 0..60 {
            let queue = random.below(3) as usize;
            for index in 0..8 {
                let descriptor = Descriptor {
                    addr: [random.below(RAM as u64 + 5000), random.next_u64()][random.below(9) as usize / 8],
                    len: [random.below(3000), random.below(1 << 32)][random.below(9) as usize / 8] as u32,
                    flags: random.below(8) as u16,
                    next: random.below(9) as u16,
                };
                m.queues[queue].write_descriptor(index, descriptor);
            }
            m.queues[queue].publish(random.below(9) as u16);
            m.cables[0].send(PLAIN, &frame(1, 60 + random.below(3000) as usize));
            m.kick(queue as u16);
            while m.cables[0].receive().is_some() {}
            match random.below(12) {
                0 => m.host.pause(),
                1 => m.host.unpause(),
                2 => {
                    let position = m.host.stop_ring(queue as u16).unwrap();
                    let layout = m.queues[queue].layout();
                    let start = strato_virtio::RingStart {
                        queue: queue as u16,
                        layout,
                        next_avail: position,
                        kick: None,
                    };
                    m.host.start_ring(start).unwrap();
                }
                _ => {}
            }
            m.settle();
        }
    }
}
