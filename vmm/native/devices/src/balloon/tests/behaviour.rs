//! Normal traffic.

use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant, SystemTime};

use strato_virtio::{Notification, RING_FEATURES};

use super::*;

const ALL: u64 = STATS_VQ | OOM | REPORTING;

#[test]
fn pages_that_the_guest_gives_up_go_back_to_the_host() {
    let mut m = machine(config(None), ALL);
    m.send_pages(0, &[300, 302, 301, 900, 299]);
    assert_eq!(m.queues[0].take_used().map(|used| used.1), Some(0));
    assert_eq!(m.zero_pages(), [299, 300, 301, 302, 900]);
    assert_eq!(m.ranges(), [(299 * PAGE, 4 * PAGE), (900 * PAGE, PAGE)]);
    assert_eq!((m.counter("inflated_pages"), m.counter("discarded_bytes")), (5, 5 * PAGE));
    assert_eq!(m.notifier.take(), [Notification::Queue(0)]);
    // Taken out again: the guest just uses them.
    m.send_pages(1, &[300, 301]);
    assert_eq!(m.queues[1].take_used().map(|used| used.1), Some(0));
    assert_eq!((m.counter("deflated_pages"), m.counter("discarded_bytes")), (2, 5 * PAGE));
    m.fill();
    assert!(m.zero_pages().is_empty());
}

#[test]
fn lists_come_in_any_pieces() {
    let mut m = machine(config(None), ALL);
    let raw: Vec<u8> = [400u32, 500, 600].iter().flat_map(|page| page.to_le_bytes()).collect();
    m.queues[0].write(LISTS, &raw[..3]);
    m.queues[0].write(LISTS + 0x1000, &raw[3..]);
    m.give(0, &[(LISTS, 3, false), (LISTS + 0x1000, 9, false)]);
    assert_eq!(m.zero_pages(), [400, 500, 600]);
}

#[test]
fn the_guest_hears_of_a_target_and_tells_how_far_it_is() {
    let mut m = machine(config(None), ALL);
    assert_eq!(m.host.config().get(0, 8).unwrap(), [0; 8]);
    m.control.set_target(700 * PAGE + 17).unwrap();
    m.settle();
    assert_eq!(m.notifier.take(), [Notification::Config]);
    assert_eq!(m.host.config().get(0, 4).unwrap(), 700u32.to_le_bytes());
    assert!(m.host.write_config(4, &600u32.to_le_bytes()));
    let info = m.control.info();
    assert_eq!((info.target, info.actual), (700 * PAGE, 600 * PAGE));
    // The same once more is no change.
    m.control.set_target(700 * PAGE).unwrap();
    m.settle();
    assert_eq!(m.notifier.take(), []);
    assert!(m.control.set_target(1 << 44).is_err());
    m.control.set_target((1 << 44) - 1).unwrap();
    m.settle();
    assert_eq!(m.host.config().get(0, 4).unwrap(), [0xff; 4]);
}

#[test]
fn the_host_hears_of_every_other_size_once() {
    let mut m = machine(config(None), ALL);
    let heard = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&heard);
    m.control.on_actual(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    for pages in [600u32, 600, 0, 1] {
        assert!(m.host.write_config(4, &pages.to_le_bytes()));
    }
    assert_eq!(heard.load(Ordering::Relaxed), 3);
    assert_eq!(m.control.info().actual, PAGE);
}

#[test]
fn only_the_guests_own_field_can_be_written() {
    let mut m = machine(config(None), ALL);
    m.control.set_target(9 * PAGE).unwrap();
    m.settle();
    assert!(m.host.write_config(0, &[0xff; 4]));
    assert!(m.host.write_config(2, &[0x11; 4]));
    assert!(m.host.write_config(7, &[0x22]));
    assert_eq!(m.host.config().get(0, 8).unwrap(), [9, 0, 0, 0, 0x11, 0x11, 0, 0x22]);
    assert!(!m.host.write_config(8, &[1]));
    assert_eq!(m.control.info().actual, 0x2200_1111 * PAGE);
}

#[test]
fn features_are_those_that_were_asked_for() {
    for (deflate_on_oom, reporting, features, queues) in
        [(false, false, 0, 3), (true, false, OOM, 3), (false, true, REPORTING, 5)]
    {
        let balloon =
            Balloon::new(BalloonConfig { deflate_on_oom, reporting, stats_interval: None }).unwrap();
        let host = DeviceHost::new(Box::new(balloon), Box::new(MockNotifier::default())).unwrap();
        assert_eq!(host.info().features, RING_FEATURES | STATS_VQ | features);
        assert_eq!(host.info().queue_sizes.len(), queues);
    }
}

#[test]
fn statistics_are_taken_by_tag() {
    let mut m = machine(config(None), ALL);
    let before = SystemTime::now();
    assert_eq!(m.control.info().stats, [None; STATS]);
    assert_eq!(m.control.info().updated, None);
    m.send_stats(&[(4, 1 << 30), (0, 7), (15, 9), (16, 1), (0xffff, 2), (0, 8)]);
    let info = m.control.info();
    let mut expected = [None; STATS];
    (expected[0], expected[4], expected[15]) = (Some(8), Some(1 << 30), Some(9));
    assert_eq!(info.stats, expected);
    assert!(info.updated.unwrap() >= before);
    // The buffer stays with the device until the next are wanted, which is never.
    m.settle();
    assert_eq!(m.queues[2].take_used(), None);
    m.host.kick(2);
    assert_eq!(m.counter("stats_updates"), 1);
}

#[test]
fn statistics_are_asked_for_in_time() {
    let interval = Duration::from_millis(20);
    let mut m = machine(config(Some(interval)), ALL);
    let begin = Instant::now();
    for round in 1..4 {
        m.send_stats(&[(0, round)]);
        assert_eq!(m.control.info().stats[0], Some(round));
        while m.queues[2].take_used().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            m.host.turn(1000).unwrap();
        }
    }
    assert!(begin.elapsed() >= 3 * interval, "{:?}", begin.elapsed());
    assert_eq!(m.counter("stats_updates"), 3);
    assert!(m.notifier.take().contains(&Notification::Queue(2)));
    // A driver that never answers is asked no more often than that, and nothing breaks.
    m.host.turn(1000).unwrap();
    assert_eq!(m.queues[2].take_used(), None);
    m.send_stats(&[(0, 99)]);
    assert_eq!(m.control.info().stats[0], Some(99));
}

#[test]
fn statistics_go_on_after_a_pause_and_a_stop() {
    let interval = Duration::from_millis(10);
    let mut m = machine(config(Some(interval)), ALL);
    m.send_stats(&[(0, 1)]);
    m.host.pause();
    // The timer goes off meanwhile.
    m.host.turn(1000).unwrap();
    assert_eq!(m.queues[2].take_used(), None);
    m.host.unpause();
    let position = m.host.stop_ring(2).unwrap();
    let layout = m.queues[2].layout();
    m.host.start_ring(RingStart { queue: 2, layout, next_avail: position, kick: None }).unwrap();
    assert_eq!(m.counter("stats_updates"), 2, "read once more");
    while m.queues[2].take_used().is_none() {
        m.host.turn(1000).unwrap();
    }
}

#[test]
fn free_pages_that_are_reported_go_back_before_they_are_given_back() {
    let mut m = machine(config(None), ALL);
    let buffers = [(300 * PAGE, 64 * PAGE as u32, true), (500 * PAGE, 32 * PAGE as u32, true)];
    m.give(3, &buffers);
    assert_eq!(m.queues[3].take_used().map(|used| used.1), Some(0));
    assert_eq!(m.zero_pages(), (300..364).chain(500..532).collect::<Vec<_>>());
    assert_eq!((m.counter("reported_bytes"), m.counter("discarded_bytes")), (96 * PAGE, 96 * PAGE));
    assert_eq!((m.control.info().reported, m.control.info().discarded), (96 * PAGE, 96 * PAGE));
}

/// A driver by the specification's numbers, and one that leaves out what was not settled.
#[test]
fn queues_are_known_by_both_ways_of_numbering_them() {
    for (features, queue) in [(ALL, 3), (ALL, 4), (REPORTING, 2), (REPORTING, 3), (REPORTING, 4)] {
        let mut m = machine(config(None), features);
        m.give(queue, &[(300 * PAGE, PAGE as u32, true)]);
        assert_eq!(m.zero_pages(), [300], "{features:#x} {queue}");
        assert!(m.queues[queue].take_used().is_some());
    }
    // What was not settled does not exist.
    let mut m = machine(config(None), 0);
    for queue in 2..5 {
        m.give(queue, &[(300 * PAGE, PAGE as u32, true)]);
        assert_eq!(m.queues[queue].take_used(), None);
    }
    assert!(m.zero_pages().is_empty());
}

#[test]
fn a_host_that_does_not_take_pages_is_told_of_and_the_guest_goes_on() {
    let mut m = machine(config(None), ALL);
    m.taken.fails.store(true, Ordering::Relaxed);
    m.send_pages(0, &[300, 302, 304]);
    m.give(3, &[(300 * PAGE, PAGE as u32, true)]);
    assert!(m.queues[0].take_used().is_some() && m.queues[3].take_used().is_some());
    assert_eq!((m.counter("failures"), m.counter("discarded_bytes")), (4, 0));
    assert!(m.host.fault().is_none());
}

#[test]
fn a_reset_forgets_the_driver_and_keeps_the_target() {
    let mut m = machine(config(Some(Duration::from_secs(3600))), ALL);
    m.control.set_target(64 * PAGE).unwrap();
    m.settle();
    m.host.write_config(4, &[64, 0, 0, 0]);
    m.send_stats(&[(1, 2)]);
    m.host.reset();
    let info = m.control.info();
    let forgotten = BalloonInfo { target: 64 * PAGE, ..BalloonInfo::default() };
    assert_eq!(info, forgotten);
    assert_eq!(m.host.config().get(0, 8).unwrap(), [64, 0, 0, 0, 0, 0, 0, 0]);
    m.begin(ALL);
    m.send_stats(&[(1, 3)]);
    assert_eq!(m.control.info().stats[1], Some(3));
}

#[test]
fn saved_state_keeps_target_and_actual_and_statistics_come_anew() {
    let mut m = machine(config(None), ALL);
    m.control.set_target(64 * PAGE).unwrap();
    m.settle();
    m.host.write_config(4, &[60, 0, 0, 0]);
    m.send_stats(&[(1, 2)]);
    let saved = m.host.save();
    let mut n = machine(config(None), ALL);
    n.queues[2].write(LISTS, &m.queues[2].read(LISTS, 10));
    let rings = n.host.restore(&saved).unwrap();
    let (layout, next_avail) = rings[2].unwrap();
    assert_eq!(next_avail, 0, "the buffer of statistics is not held");
    assert_eq!((n.control.info().target, n.control.info().actual), (64 * PAGE, 60 * PAGE));
    assert_eq!(n.host.config(), m.host.config());
    n.queues[2].offer(&[(LISTS, 10, false)]).unwrap();
    n.host.start_ring(RingStart { queue: 2, layout, next_avail, kick: None }).unwrap();
    assert_eq!(n.control.info().stats[1], Some(2));
    for len in 0..saved.len() {
        assert!(n.host.restore(&saved[..len]).is_err());
    }
}
