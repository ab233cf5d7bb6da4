//! Packets towards the guest.

use strato_virtio::{Notification, VIRTIO_F_EVENT_IDX};

use super::guest::{Cable, MAC, Machine, PLAIN, RX_DATA, config, frame, machine, stopped};
use crate::net::queue::*;

const MERGE: u64 = VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_GUEST_CSUM;

fn received(m: &mut Machine) -> Option<(u16, u32)> {
    m.queues[0].take_used()
}

#[test]
fn packet_fills_one_buffer_and_says_so() {
    let mut m = machine(MERGE);
    m.post(RX_DATA, 2000);
    m.post(RX_DATA + 4096, 2000);
    m.kick(0);
    let mut header = PLAIN;
    header[0] = 1; // NEEDS_CSUM from the host goes through
    assert!(m.cables[0].send(header, &frame(1, 100)));
    m.settle();
    assert_eq!(received(&mut m).map(|used| used.1), Some(112));
    assert_eq!(received(&mut m), None);
    header[10] = 1;
    assert_eq!(m.queues[0].read(RX_DATA, 12), header);
    assert_eq!(m.queues[0].read(RX_DATA + 12, 100), frame(1, 100));
    assert_eq!((m.count("rx_packets"), m.count("rx_bytes")), (1, 100));
    assert!(m.notifier.take().contains(&Notification::Queue(0)));
}

#[test]
fn flags_are_hidden_from_a_driver_without_checksums() {
    let mut m = machine(VIRTIO_NET_F_MRG_RXBUF);
    m.post(RX_DATA, 2000);
    m.kick(0);
    m.cables[0].send([2; 12], &frame(1, 100));
    m.settle();
    assert_eq!(m.queues[0].read(RX_DATA, 1), [0]);
    assert_eq!(m.queues[0].read(RX_DATA + 10, 2), [1, 0]);
}

#[test]
fn packet_is_spread_over_buffers_and_shown_at_once() {
    let mut m = machine(MERGE);
    let heads: Vec<u16> = (0..50).map(|n| m.post(RX_DATA + 4096 * n, 1500)).collect();
    m.kick(0);
    m.cables[0].send(PLAIN, &frame(9, 65_000));
    m.settle();
    let used: Vec<_> = std::iter::from_fn(|| received(&mut m)).collect();
    assert_eq!(used.len(), 65_012usize.div_ceil(1500));
    assert_eq!(used.iter().map(|used| used.0).collect::<Vec<_>>(), heads[..used.len()]);
    assert_eq!(m.queues[0].read(RX_DATA + 10, 2), (used.len() as u16).to_le_bytes());
    let data: Vec<u8> = (0..used.len())
        .flat_map(|n| m.queues[0].read(RX_DATA + 4096 * n as u64, used[n].1 as usize))
        .collect();
    assert_eq!(data[12..], frame(9, 65_000));
}

#[test]
fn buffers_of_many_pieces_are_filled_in_order() {
    let mut m = machine(MERGE);
    m.queues[0].offer(&[(RX_DATA, 5, true), (RX_DATA + 100, 6, true), (RX_DATA + 200, 2000, true)]).unwrap();
    m.kick(0);
    m.cables[0].send([9; 12], &frame(3, 60));
    m.settle();
    assert_eq!(received(&mut m).map(|used| used.1), Some(72));
    assert_eq!(m.queues[0].read(RX_DATA + 100, 6), [9, 9, 9, 9, 9, 1]);
    assert_eq!(m.queues[0].read(RX_DATA + 200, 61)[1..], frame(3, 60));
}

#[test]
fn packet_longer_than_the_posted_buffers_waits_for_more_of_them() {
    let mut m = machine(MERGE);
    m.post(RX_DATA, 1500);
    m.kick(0);
    m.cables[0].send(PLAIN, &frame(1, 4000));
    m.cables[0].send(PLAIN, &frame(2, 60));
    m.settle();
    assert_eq!(received(&mut m), None);
    for n in 1..5 {
        m.post(RX_DATA + 4096 * n, 1500);
    }
    m.kick(0);
    let used: Vec<u32> = std::iter::from_fn(|| received(&mut m)).map(|used| used.1).collect();
    assert_eq!(used, [1500, 1500, 1012, 72]);
    assert_eq!(m.queues[0].read(RX_DATA + 10, 2), [3, 0]);
    assert_eq!(m.queues[0].read(RX_DATA + 12, 1488), frame(1, 4000)[..1488]);
    assert_eq!(m.queues[0].read(RX_DATA + 8192, 1012), frame(1, 4000)[2988..]);
    assert_eq!(m.count("rx_too_long"), 0);
}

#[test]
fn packet_longer_than_the_whole_ring_is_dropped_and_counted() {
    let mut m = machine(MERGE);
    for n in 0..256 {
        m.post(RX_DATA + 64 * n, 64);
    }
    m.kick(0);
    m.cables[0].send(PLAIN, &frame(1, 40_000));
    m.cables[0].send(PLAIN, &frame(2, 40));
    m.settle();
    assert_eq!((m.count("rx_too_long"), m.count("rx_packets")), (1, 1));
    assert_eq!(received(&mut m).map(|used| used.1), Some(52));
    assert_eq!(m.queues[0].read(RX_DATA + 12, 40), frame(2, 40));
}

#[test]
fn without_merging_each_packet_needs_one_chain_that_holds_it() {
    let mut m = machine(VIRTIO_NET_F_GUEST_CSUM);
    m.post(RX_DATA, 1000);
    m.post(RX_DATA + 4096, 1000);
    m.kick(0);
    m.cables[0].send(PLAIN, &frame(1, 989));
    m.cables[0].send(PLAIN, &frame(2, 988));
    m.settle();
    assert_eq!(m.count("rx_too_long"), 1);
    assert_eq!(received(&mut m).map(|used| used.1), Some(1000));
    assert_eq!(m.queues[0].read(RX_DATA + 12, 988), frame(2, 988));
    assert_eq!(received(&mut m), None);
}

#[test]
fn guest_that_never_fills_its_ring_costs_nothing() {
    let mut m = machine(MERGE);
    m.settle();
    let mut turns = 0;
    for number in 0..100 {
        assert!(m.cables[0].send(PLAIN, &frame(number, 60)));
        turns += u32::from(m.host.turn(0).unwrap());
    }
    // One wake-up to learn of it and one to find it useless; then the tap is not heard any more.
    assert!(turns <= 2, "{turns} wake-ups");
    assert!(m.count("tap_events") <= 4);
    // All are there once the guest wants them.
    for n in 0..200 {
        m.post(RX_DATA + 2048 * n, 2048);
    }
    m.kick(0);
    assert_eq!(m.count("rx_packets"), 100);
    m.cables[0].send(PLAIN, &frame(100, 60));
    m.settle();
    assert_eq!(m.count("rx_packets"), 101);
}

#[test]
fn starved_ring_asks_for_a_kick_with_event_idx() {
    let mut m = machine(MERGE | VIRTIO_F_EVENT_IDX);
    m.post(RX_DATA, 2048);
    m.kick(0);
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.cables[0].send(PLAIN, &frame(2, 60));
    m.settle();
    // avail_event, behind the used ring (virtio 1.2, 2.7.10), names the entry that the driver fills next.
    let layout = m.queues[0].layout();
    let at = layout.used_ring + 4 + 8 * u64::from(layout.size);
    assert_eq!(m.queues[0].read(at, 2), [1, 0]);
    assert!(m.count("rx_starved") >= 1);
}

#[test]
fn pause_and_stop_give_back_every_buffer_and_lose_no_packet() {
    let mut m = machine(MERGE);
    for n in 0..10 {
        m.post(RX_DATA + 2048 * n, 1000);
    }
    m.kick(0);
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.settle();
    m.host.pause();
    m.cables[0].send(PLAIN, &frame(2, 60));
    m.settle();
    assert_eq!(m.queues[0].used_idx(), 1);
    m.host.unpause();
    m.settle();
    assert_eq!(m.queues[0].used_idx(), 2);
    assert_eq!(m.host.stop_ring(0), Some(2));
    // In the meantime a packet too long for what is left.
    m.cables[0].send(PLAIN, &frame(3, 8000));
    m.settle();
    m.start(0, 2);
    m.settle();
    assert_eq!(m.queues[0].used_idx(), 2);
    assert_eq!(m.host.stop_ring(0), Some(2), "the packet waits outside of the ring");
    m.start(0, 2);
    for n in 10..12 {
        m.post(RX_DATA + 2048 * n, 1000);
    }
    m.kick(0);
    assert_eq!(m.queues[0].used_idx(), 11);
    assert_eq!(m.count("rx_packets"), 3);
}

#[test]
fn packets_from_before_a_driver_are_not_its_own() {
    let (cable, tap) = Cable::pair();
    let mut m = stopped(config(vec![tap]), vec![cable]);
    for number in 0..10 {
        m.cables[0].send(PLAIN, &frame(number, 60));
    }
    m.settle();
    assert!(m.host.set_features(MERGE | strato_virtio::VIRTIO_F_VERSION_1));
    m.post(RX_DATA, 2000);
    m.start_all();
    m.settle();
    assert_eq!((m.count("rx_stale"), m.count("rx_packets")), (10, 0));
    m.cables[0].send(PLAIN, &frame(11, 60));
    m.settle();
    assert_eq!(m.count("rx_packets"), 1);
}

#[test]
fn link_down_receives_nothing_and_forgets_what_came_meanwhile() {
    let mut m = machine(MERGE | VIRTIO_NET_F_STATUS);
    for n in 0..10 {
        m.post(RX_DATA + 2048 * n, 2000);
    }
    m.kick(0);
    assert_eq!(m.status(), 1);
    m.handle.set_link(false);
    m.settle();
    assert!(m.config_notified());
    assert_eq!(m.status(), 0);
    for number in 0..20 {
        m.cables[0].send(PLAIN, &frame(number, 60));
        m.settle();
    }
    assert!(m.count("tap_events") <= 4, "a tap of a dead link is not listened to");
    m.send(PLAIN, &frame(0, 60));
    assert_eq!((m.count("tx_link_down"), m.count("rx_packets")), (1, 0));
    assert!(m.cables[0].receive().is_none());
    m.handle.set_link(true);
    m.settle();
    assert!(m.config_notified());
    assert_eq!((m.count("rx_stale"), m.count("rx_packets")), (20, 0));
    m.cables[0].send(PLAIN, &frame(21, 60));
    m.settle();
    m.send(PLAIN, &frame(0, 60));
    assert_eq!((m.count("rx_packets"), m.count("tx_packets")), (1, 1));
}

#[test]
fn reset_and_a_new_driver_get_a_device_as_new() {
    let mut m = machine(MERGE | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CTRL_MAC_ADDR);
    for n in 0..10 {
        m.post(RX_DATA + 2048 * n, 200);
    }
    m.kick(0);
    assert_eq!(m.ask(2, 1, 1, &[2, 2, 2, 2, 2, 2]), 0);
    m.cables[0].send(PLAIN, &frame(1, 8000));
    m.settle();
    m.host.reset();
    assert_eq!(m.host.config().get(0, 6).unwrap(), MAC);
    let mut other = machine(MERGE);
    std::mem::swap(&mut m.queues, &mut other.queues);
    m.host.set_memory(other.ram.clone()).unwrap();
    assert!(m.host.set_features(MERGE | strato_virtio::VIRTIO_F_VERSION_1));
    m.post(RX_DATA, 2000);
    m.start_all();
    m.settle();
    m.cables[0].send(PLAIN, &frame(2, 60));
    m.settle();
    assert_eq!(m.queues[0].read(RX_DATA + 12, 60), frame(2, 60));
    assert_eq!(m.count("rx_packets"), 1);
}

#[test]
fn far_end_that_closes_does_not_spin() {
    let mut m = machine(MERGE);
    m.post(RX_DATA, 2000);
    m.kick(0);
    m.cables.clear();
    m.settle();
    assert!(!m.host.turn(0).unwrap());
    m.send(PLAIN, &frame(1, 60));
    assert_eq!(m.count("tx_errors"), 1);
    // A new tap, and all is well.
    let (cable, tap) = Cable::pair();
    m.cables.push(cable);
    m.handle.set_taps(vec![tap]);
    m.settle();
    m.cables[0].send(PLAIN, &frame(2, 60));
    m.settle();
    m.send(PLAIN, &frame(1, 60));
    assert_eq!((m.count("rx_packets"), m.count("tx_packets")), (1, 1));
}
