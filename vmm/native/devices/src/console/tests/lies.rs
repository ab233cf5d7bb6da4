//! A driver that lies.

use std::sync::atomic::Ordering;

use strato_virtio::Notification;
use strato_virtio::mock::{Descriptor, NEXT, SeededRandom, WRITE};

use super::*;

#[test]
fn control_messages_without_sense_are_counted_and_dropped() {
    let mut m = machine(2, MULTIPORT);
    m.say(2, 3, 1);
    m.say(u32::MAX, 6, 1);
    m.say(0, 999, 1);
    m.send(3, &[1, 2, 3]);
    m.send(3, &[]);
    assert_eq!(m.metrics.refused.load(Ordering::Relaxed), 5);
    assert_eq!(m.hear(), None);
    assert!(m.host.fault().is_none());
}

#[test]
fn buffers_that_hold_nothing_come_back_empty() {
    let mut m = machine(2, MULTIPORT);
    m.write(0, b"x");
    m.say(0, 3, 1);
    m.say(0, 6, 1);
    m.queue(0).offer(&[(BUFFER, 8, false)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.queue(0).take_used().map(|used| used.1), Some(0));
    assert_eq!(m.receive(0, 8).unwrap(), b"x");
    // Too small for any control message; the message waits for the next buffer.
    assert_eq!(m.receive(2, 7).unwrap(), b"");
    assert_eq!(m.hear().unwrap().1, 4);
    assert!(m.host.fault().is_none());
}

#[test]
fn a_loop_of_descriptors_asks_for_a_reset() {
    let mut m = machine(1, 0);
    m.queue(1).write_descriptor(0, Descriptor { addr: BUFFER, len: 8, flags: NEXT, next: 0 });
    m.queue(1).publish(0);
    m.host.kick(1);
    assert!(m.host.fault().is_some());
    assert_eq!(m.notifier.take(), [Notification::NeedsReset]);
    m.host.reset();
    m.start(0);
    m.send(1, b"healed");
    assert_eq!(m.read(0), b"healed");
}

#[test]
fn chains_past_the_end_of_memory_ask_for_a_reset() {
    for (addr, len) in [((1 << 20) - 4, 8), (u64::MAX - 3, 8), (1 << 40, 1)] {
        let mut m = machine(1, 0);
        m.queue(1).offer(&[(addr, len, false)]).unwrap();
        m.host.kick(1);
        assert!(m.host.fault().is_some(), "{addr:#x} {len}");
    }
}

#[test]
fn huge_writes_are_taken_piece_by_piece() {
    let mut m = machine(1, 0);
    let len = (1 << 20) - BUFFER as u32;
    m.queue(1).offer(&[(BUFFER, len, false)]).unwrap();
    m.host.kick(1);
    assert_eq!(m.queue(1).take_used().map(|used| used.1), Some(0));
    assert_eq!(m.metrics.tx_bytes.load(Ordering::Relaxed), u64::from(len));
}

#[test]
fn configuration_accesses_outside_are_refused() {
    let mut m = machine(1, 0);
    assert!(!m.host.write_config(9, &[1, 2, 3, 4]));
    assert!(!m.host.write_config(u32::MAX, &[1]));
    assert!(m.host.config().get(12, 1).is_none());
    // Only the emergency field is written.
    assert!(m.host.write_config(0, &[1, 2, 3, 4]));
    assert_eq!(m.read(0), b"");
    assert_eq!(m.host.config().get(0, 4).unwrap(), [80, 0, 25, 0]);
}

#[test]
fn records_that_were_tampered_with_are_refused() {
    let mut m = machine(2, MULTIPORT);
    let record = m.host.save();
    for len in 0..record.len() {
        assert!(machine(2, 0).host.restore(&record[..len]).is_err());
    }
    assert!(machine(1, 0).host.restore(&record).is_err());
}

#[test]
fn random_rings_and_messages_never_harm_the_device() {
    for seed in 0..200 {
        let mut random = SeededRandom::new(seed);
        let mut m = machine(3, MULTIPORT);
        for _ in 0..60 {
            let queue = random.below(8) as u16;
            let flags = (random.below(8) as u16) & (NEXT | WRITE);
            let descriptor = Descriptor {
                addr: random.below(1 << 21),
                len: random.below(64) as u32,
                flags,
                next: random.below(20) as u16,
            };
            let mut bytes = [0; 64];
            random.fill(&mut bytes);
            bytes[4] &= 7;
            bytes[5] = 0;
            m.queue(queue).write(BUFFER, &bytes);
            let descriptor =
                if random.below(3) == 0 { descriptor } else { Descriptor { addr: BUFFER, ..descriptor } };
            let index = random.below(16) as u16;
            m.queue(queue).write_descriptor(index, descriptor);
            m.queue(queue).publish(index);
            m.host.kick(queue);
            m.host.turn(0).unwrap();
            if random.below(20) == 0 || m.host.fault().is_some() {
                m.host.reset();
                m.start(if random.below(2) == 0 { MULTIPORT } else { 0 });
            }
        }
        // It still works for an honest driver.
        m.host.reset();
        m.start(0);
        m.read(0);
        m.send(1, b"fine");
        m.turn();
        assert!(m.read(0).ends_with(b"fine"), "seed {seed}");
    }
}
