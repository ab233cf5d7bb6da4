//! Packets from the guest.

use super::guest::{Cable, PLAIN, TX_DATA, config, frame, machine, stopped};
use crate::net::queue::*;

/// Everything about sending.
const HOST: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_HOST_TSO6
    | VIRTIO_NET_F_HOST_ECN
    | VIRTIO_NET_F_HOST_UFO;

fn header(flags: u8, gso: u8, hdr_len: u16, gso_size: u16, start: u16, offset: u16) -> [u8; HEADER_LEN] {
    let mut header = PLAIN;
    header[0] = flags;
    header[1] = gso;
    for (field, value) in header[2..10].chunks_exact_mut(2).zip([hdr_len, gso_size, start, offset]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    header
}

#[test]
fn packet_reaches_the_tap_from_however_many_buffers() {
    let mut m = machine(0);
    let data = frame(5, 300);
    let sent = [&PLAIN[..], &data].concat();
    m.queues[1].write(TX_DATA, &sent);
    let pieces = [(TX_DATA, 7, false), (TX_DATA + 7, 100, false), (TX_DATA + 107, 205, false)];
    m.queues[1].offer(&pieces).unwrap();
    m.kick(1);
    assert_eq!(m.queues[1].take_used().map(|used| used.1), Some(0));
    assert_eq!(m.cables[0].receive(), Some((PLAIN.to_vec(), data)));
    assert_eq!((m.count("tx_packets"), m.count("tx_bytes")), (1, 300));
}

#[test]
fn header_goes_through_as_far_as_it_was_negotiated() {
    let mut m = machine(HOST);
    for good in [
        header(1, 0, 0, 0, 34, 16),
        header(1, 1, 54, 1448, 34, 16),
        header(1, 0x81, 54, 1448, 34, 16),
        header(1, 4, 74, 1428, 54, 16),
        header(1, 3, 42, 1472, 34, 6),
    ] {
        m.send(good, &frame(1, 3000));
        assert_eq!(m.cables[0].receive().unwrap().0, good);
    }
    assert_eq!(m.count("tx_bad_packets"), 0);
    // What the device does not know or need is not passed on.
    let mut odd = header(0x06, 0, 99, 7, 9, 9);
    odd[10] = 3;
    m.send(odd, &frame(1, 60));
    assert_eq!(m.cables[0].receive().unwrap().0, PLAIN);
}

#[test]
fn bad_headers_never_reach_the_tap() {
    let mut m = machine(HOST);
    let bad = [
        header(1, 0, 0, 0, 13, 6),         // checksum begins in the Ethernet header
        header(1, 0, 0, 0, 60, 39),        // its second byte is past the end
        header(1, 0, 0, 0, 65535, 65535),  // far past the end
        header(0, 1, 54, 1448, 0, 0),      // segmentation without a checksum
        header(1, 1, 54, 0, 34, 16),       // segments of no size
        header(1, 1, 101, 1448, 34, 16),   // headers longer than the packet
        header(1, 2, 54, 1448, 34, 16),    // no such kind
        header(1, 0x83, 54, 1448, 34, 16), // ECN without TCP
        header(1, 0x80, 54, 1448, 34, 16), // ECN of nothing
        header(1, 5, 54, 1448, 34, 16),    // not negotiated
        header(1, 0xff, 54, 1448, 34, 16),
    ];
    for header in bad {
        m.send(header, &frame(1, 100));
    }
    assert_eq!(m.count("tx_bad_packets"), bad.len() as u64);
    assert!(m.cables[0].receive().is_none());
    let mut m = machine(0);
    m.send(header(1, 0, 0, 0, 34, 16), &frame(1, 100));
    m.send(header(1, 1, 54, 1448, 34, 16), &frame(1, 100));
    assert_eq!(m.count("tx_bad_packets"), 2);
    assert!(m.host.fault().is_none());
}

#[test]
fn frames_too_short_or_too_long_are_dropped() {
    let mut m = machine(0);
    for len in [0, 1, 13, 65_554, 100_000] {
        m.queues[1].write(TX_DATA, &PLAIN);
        m.queues[1].offer(&[(TX_DATA, 12 + len, false)]).unwrap();
        m.kick(1);
        assert!(m.queues[1].take_used().is_some());
    }
    for len in [1, 11] {
        m.queues[1].offer(&[(TX_DATA, len, false)]).unwrap();
        m.kick(1);
        assert!(m.queues[1].take_used().is_some());
    }
    m.queues[1].offer(&[(TX_DATA, 100, true)]).unwrap();
    m.kick(1);
    assert!(m.queues[1].take_used().is_some());
    assert_eq!(m.count("tx_bad_packets"), 8);
    assert!(m.cables[0].receive().is_none());
}

#[test]
fn tap_without_room_is_waited_for_and_nothing_is_lost() {
    let (cable, tap) = Cable::pair();
    Cable::fill(&tap);
    let mut m = stopped(config(vec![tap]), vec![cable]);
    assert!(m.host.set_features(strato_virtio::VIRTIO_F_VERSION_1));
    m.start_all();
    for number in 0..20 {
        let at = TX_DATA + 4096 * number;
        m.queues[1].write(at, &[&PLAIN[..], &frame(number, 60)].concat());
        m.queues[1].offer(&[(at, 72, false)]).unwrap();
    }
    m.kick(1);
    assert_eq!((m.queues[1].used_idx(), m.count("tx_blocked")), (0, 1));
    // Kicks do not make the device try again in vain.
    m.kick(1);
    assert_eq!(m.count("tx_blocked"), 1);
    let mut got = Vec::new();
    while got.len() < 20 {
        while let Some((_, data)) = m.cables[0].receive() {
            // The fillers are shorter than a frame of the guest.
            got.extend((data.len() == 60).then_some(data));
        }
        m.settle();
    }
    assert_eq!(got, (0..20).map(|number| frame(number, 60)).collect::<Vec<_>>());
    assert_eq!(m.queues[1].used_idx(), 20);
}
