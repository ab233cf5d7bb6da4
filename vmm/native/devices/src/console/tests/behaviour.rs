//! Normal traffic.

use std::sync::atomic::Ordering;

use strato_virtio::Notification;

use super::*;

#[test]
fn bytes_go_both_ways() {
    let mut m = machine(1, 0);
    m.send(1, b"to the host");
    assert_eq!(m.read(0), b"to the host");
    m.write(0, b"to the guest");
    assert_eq!(m.receive(0, 5).unwrap(), b"to th");
    assert_eq!(m.receive(0, 50).unwrap(), b"e guest");
    assert_eq!(m.notifier.take().last(), Some(&Notification::Queue(0)));
}

#[test]
fn bytes_wait_for_the_guest_and_the_guest_for_bytes() {
    let mut m = machine(1, 0);
    assert_eq!(m.receive(0, 10), None);
    m.write(0, b"late");
    assert_eq!(m.queue(0).take_used().map(|used| used.1), Some(4));
}

#[test]
fn a_reader_that_is_not_there_blocks_nobody_and_finds_the_latest() {
    let mut m = machine(1, 0);
    let sent: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for chunk in sent.chunks(0x8000) {
        m.send(1, chunk);
    }
    let dropped = m.metrics.dropped_bytes.load(Ordering::Relaxed);
    let mut found = m.read(0);
    while found.len() < sent.len() - dropped as usize {
        m.turn();
        found.extend(m.read(0));
    }
    assert!(dropped > 0);
    assert_eq!(found.len() + dropped as usize, sent.len());
    // What the socket held came first; the newest came last.
    let tail = found.len().min(64 * 1024);
    assert_eq!(found[found.len() - tail..], sent[sent.len() - tail..]);
    m.send(1, b"and on");
    assert_eq!(m.read(0), b"and on");
}

#[test]
fn a_reader_that_has_gone_costs_nothing() {
    let mut m = machine(1, 0);
    m.ends.clear();
    m.turn();
    for _ in 0..3 {
        m.send(1, &[7; 1000]);
    }
    assert_eq!(m.metrics.dropped_bytes.load(Ordering::Relaxed), 3000);
    assert_eq!(m.receive(0, 10), None);
}

#[test]
fn size_is_in_the_configuration_and_changes() {
    let mut m = machine(1, 0);
    assert_eq!(m.host.config().get(0, 8).unwrap(), [80, 0, 25, 0, 1, 0, 0, 0]);
    m.control.resize(132, 50).unwrap();
    m.turn();
    assert_eq!(m.host.config().get(0, 4).unwrap(), [132, 0, 50, 0]);
    assert_eq!(m.notifier.take(), [Notification::Config]);
}

#[test]
fn emergency_characters_need_no_queue() {
    let mut m = machine(1, 0);
    m.host.reset();
    for character in b"oops" {
        assert!(m.host.write_config(8, &u32::from(*character).to_le_bytes()));
    }
    assert_eq!(m.read(0), b"oops");
}

#[test]
fn ports_introduce_themselves() {
    let mut m = machine(2, MULTIPORT);
    assert_eq!(m.hear(), None);
    m.say(0xffff_ffff, 0, 1);
    assert_eq!(m.queue(2).take_used().map(|used| used.1), Some(8));
    assert_eq!(m.hear(), Some((1, 1, 1, vec![])));
    m.say(0, 3, 1);
    m.say(1, 3, 1);
    let said: Vec<_> = std::iter::from_fn(|| m.hear()).collect();
    let expected = [
        (0, 4, 1, vec![]),
        (0, 7, 1, b"port0".to_vec()),
        (0, 5, 1, vec![80, 0, 25, 0]),
        (0, 6, 1, vec![]),
        (1, 7, 1, b"port1".to_vec()),
        (1, 6, 1, vec![]),
    ];
    assert_eq!(said, expected);
}

/// A guest that has set both ports up, opened them, and left one buffer for control messages.
fn two_open_ports() -> Machine {
    let mut m = machine(2, MULTIPORT);
    for (port, event) in [(0, 0), (0, 3), (1, 3), (0, 6), (1, 6)] {
        m.say(port, event, 1);
    }
    while m.hear().is_some() {}
    m
}

#[test]
fn each_port_has_its_own_bytes_once_it_is_open() {
    let mut m = machine(2, MULTIPORT);
    m.say(1, 3, 1);
    m.write(1, b"early");
    assert_eq!(m.receive(4, 64), None);
    m.say(1, 6, 1);
    assert_eq!(m.queue(4).take_used().map(|used| used.1), Some(5));
    m.send(5, b"second");
    m.send(1, b"first");
    assert_eq!((m.read(0), m.read(1)), (b"first".to_vec(), b"second".to_vec()));
}

#[test]
fn the_guest_hears_of_a_new_size_and_of_a_host_that_goes() {
    let mut m = two_open_ports();
    m.control.resize(100, 40).unwrap();
    m.turn();
    assert_eq!(m.queue(2).take_used().map(|used| used.1), Some(12));
    drop(m.ends.remove(1));
    assert_eq!(m.receive(4, 10), None);
    // Nobody writes to it either: the port counts as closed only then.
    m.send(5, b"gone");
    assert_eq!(m.hear(), Some((1, 6, 0, vec![])));
}

#[test]
fn a_reset_forgets_the_driver_and_keeps_the_host() {
    let mut m = two_open_ports();
    m.host.reset();
    m.start(MULTIPORT);
    m.write(0, b"kept");
    assert_eq!(m.receive(0, 10), None);
    m.say(0, 3, 1);
    m.say(0, 6, 1);
    assert_eq!(m.queue(0).take_used().map(|used| used.1), Some(4));
}

#[test]
fn saved_state_keeps_what_is_open() {
    let mut m = two_open_ports();
    let record = m.host.save();
    let mut other = machine(2, 0);
    let rings = other.host.restore(&record).unwrap();
    assert!(rings.iter().all(Option::is_some));
    for (queue, ring) in (0..).zip(rings) {
        let (layout, next_avail) = ring.unwrap();
        // The mock driver of the copy begins anew where the saved one stood.
        let fresh = MockQueue::new(&other.ram, layout.desc_table, layout.size).0;
        other.queues.insert(queue, fresh);
        let layout = other.queue(queue).layout();
        let next_avail = next_avail.wrapping_mul(0);
        other.host.start_ring(strato_virtio::RingStart { queue, layout, next_avail, kick: None }).unwrap();
    }
    other.write(1, b"open");
    assert_eq!(other.receive(4, 10).unwrap(), b"open");
    // Another host is behind it: the guest hears of size and ports again.
    assert_eq!(other.hear(), Some((0, 5, 1, vec![80, 0, 25, 0])));
    assert_eq!(other.hear(), Some((0, 6, 1, vec![])));
    assert_eq!(other.hear(), Some((1, 6, 1, vec![])));
}

#[test]
fn impossible_configurations_are_refused() {
    let none = ConsoleConfig { ports: vec![], size: (0, 0) };
    assert!(Console::new(none).is_err());
    let many = (0..32).map(|_| port("").0).collect();
    assert!(Console::new(ConsoleConfig { ports: many, size: (0, 0) }).is_err());
    let long = ConsoleConfig { ports: vec![port(&"n".repeat(65)).0], size: (0, 0) };
    assert!(Console::new(long).is_err());
}
