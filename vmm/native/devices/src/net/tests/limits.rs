//! Limits of bytes and packets per time, apart for each direction.

use std::time::{Duration, Instant};

use super::guest::{PLAIN, RX_DATA, TX_DATA, frame, machine, with_pairs};
use crate::net::queue::VIRTIO_NET_F_MRG_RXBUF;
use crate::{BucketConfig, Limits};

const NEVER: Limits = Limits { bandwidth: None, operations: Some(BucketConfig { rate: 1, burst: 1 }) };

fn packets(rate: u64, burst: u64) -> Limits {
    Limits { bandwidth: None, operations: Some(BucketConfig { rate, burst }) }
}

#[test]
fn sending_waits_for_its_limit_and_loses_nothing() {
    let mut m = with_pairs(1, 0, |config| config.transmit_limits = packets(1000, 5));
    let began = Instant::now();
    for number in 0..25 {
        let at = TX_DATA + 4096 * number;
        m.queues[1].write(at, &[&PLAIN[..], &frame(number, 60)].concat());
        m.queues[1].offer(&[(at, 72, false)]).unwrap();
    }
    m.host.kick(1);
    while m.queues[1].used_idx() < 25 {
        m.host.turn(1000).unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(20));
    assert!(m.count("tx_throttled") >= 1);
    let got: Vec<_> = std::iter::from_fn(|| m.cables[0].receive()).map(|packet| packet.1).collect();
    assert_eq!(got, (0..25).map(|number| frame(number, 60)).collect::<Vec<_>>());
}

#[test]
fn receiving_waits_for_its_limit_and_loses_nothing() {
    let limit = Limits { bandwidth: Some(BucketConfig { rate: 100_000, burst: 1000 }), operations: None };
    let mut m = with_pairs(1, VIRTIO_NET_F_MRG_RXBUF, |config| config.receive_limits = limit);
    for n in 0..40 {
        m.post(RX_DATA + 2048 * n, 2048);
    }
    for number in 0..30 {
        m.cables[0].send(PLAIN, &frame(number, 100));
    }
    let began = Instant::now();
    m.host.kick(0);
    while m.queues[0].used_idx() < 30 {
        m.host.turn(1000).unwrap();
    }
    // 3000 bytes, of which 1000 at once and the last packet on credit.
    assert!(began.elapsed() >= Duration::from_millis(18));
    for number in 0..30u64 {
        assert_eq!(m.queues[0].read(RX_DATA + 2048 * number + 12, 100), frame(number, 100));
    }
}

#[test]
fn one_direction_does_not_wait_for_the_other() {
    let mut m = with_pairs(1, VIRTIO_NET_F_MRG_RXBUF, |config| config.transmit_limits = NEVER);
    for n in 0..10 {
        m.post(RX_DATA + 2048 * n, 2048);
    }
    m.kick(0);
    for _ in 0..3 {
        m.queues[1].write(TX_DATA, &[&PLAIN[..], &frame(1, 60)].concat());
        m.queues[1].offer(&[(TX_DATA, 72, false)]).unwrap();
    }
    m.kick(1);
    m.cables[0].send(PLAIN, &frame(1, 60));
    m.settle();
    assert_eq!((m.count("rx_packets"), m.count("tx_packets")), (1, 1));
}

#[test]
fn limits_change_while_packets_wait_for_them() {
    let mut m = machine(VIRTIO_NET_F_MRG_RXBUF);
    m.handle.set_receive_limits(NEVER);
    m.handle.set_transmit_limits(NEVER);
    m.settle();
    for n in 0..10 {
        m.post(RX_DATA + 2048 * n, 2048);
        m.cables[0].send(PLAIN, &frame(n, 60));
        let at = TX_DATA + 4096 * n;
        m.queues[1].write(at, &[&PLAIN[..], &frame(n, 60)].concat());
        m.queues[1].offer(&[(at, 72, false)]).unwrap();
    }
    m.kick(0);
    m.kick(1);
    assert_eq!((m.count("rx_packets"), m.count("tx_packets")), (1, 1));
    m.handle.set_receive_limits(Limits::default());
    m.settle();
    assert_eq!((m.count("rx_packets"), m.count("tx_packets")), (10, 1));
    m.handle.set_transmit_limits(packets(u64::MAX, u64::MAX));
    m.settle();
    assert_eq!((m.count("rx_packets"), m.count("tx_packets")), (10, 10));
}

#[test]
fn reset_does_not_refill_the_buckets() {
    let mut m = with_pairs(1, 0, |config| config.transmit_limits = NEVER);
    m.send(PLAIN, &frame(1, 60));
    m.host.reset();
    assert!(m.host.set_features(strato_virtio::VIRTIO_F_VERSION_1));
    m.start(1, 1);
    m.queues[1].offer(&[(TX_DATA, 72, false)]).unwrap();
    m.kick(1);
    assert_eq!(m.count("tx_packets"), 1);
}
