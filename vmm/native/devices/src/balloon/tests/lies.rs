//! What no honest driver says.

use super::*;

const ALL: u64 = STATS_VQ | OOM | REPORTING;

#[test]
fn pages_that_do_not_exist_are_counted_and_the_others_go() {
    let mut m = machine(config(None), ALL);
    let end = (RAM / PAGE) as u32;
    m.send_pages(0, &[end, 300, u32::MAX, 1 << 20, end + 5, 301]);
    assert!(m.queues[0].take_used().is_some());
    assert_eq!(m.zero_pages(), [300, 301]);
    assert_eq!(m.counter("refused"), 4);
    // A run that begins in memory and ends outside is refused as one.
    m.send_pages(0, &[end - 1, end]);
    assert_eq!((m.counter("refused"), m.zero_pages().len()), (5, 2));
    assert!(m.host.fault().is_none());
}

#[test]
fn a_list_has_an_end_however_long_it_is() {
    let mut m = machine(config(None), ALL);
    // 1 MiB: 262144 page numbers, all the same page.
    m.queues[0].write(FILLED, &[0; 1 << 20]);
    m.queues[0].write(FILLED, &700u32.to_le_bytes().repeat(1 << 18));
    m.give(0, &[(FILLED, 1 << 20, false)]);
    assert!(m.queues[0].take_used().is_some());
    assert_eq!((m.counter("inflated_pages"), m.counter("refused")), (4096, (1 << 18) - 4096));
    assert_eq!(m.ranges(), [(700 * PAGE, PAGE)]);
    // The whole memory, as a list to take pages out again.
    m.give(1, &[(0, RAM as u32, false)]);
    assert_eq!(m.counter("deflated_pages"), 4096);
}

#[test]
fn a_driver_that_never_ends_leaves_others_their_turn() {
    let mut m = machine(config(None), ALL);
    m.queues[0].write(FILLED, &700u32.to_le_bytes().repeat(4096));
    for _ in 0..64 {
        m.queues[0].offer(&[(FILLED, 4 * 4096, false)]).unwrap();
    }
    m.host.kick(0);
    assert_eq!(m.queues[0].used_idx(), 1, "one turn");
    m.settle();
    assert_eq!(m.queues[0].used_idx(), 64);
}

#[test]
fn lists_of_odd_lengths_and_wrong_directions_are_answered() {
    let mut m = machine(config(None), ALL);
    for queue in [0, 1, 3, 4] {
        for buffers in [
            &[(LISTS, 0, false)][..],
            &[(LISTS, 3, false)],
            &[(LISTS, 64, true)],
            &[(LISTS, 0, true)],
            &[(LISTS, 7, false), (LISTS, 7, true)],
        ] {
            m.queues[queue].write(LISTS, &[0xff; 64]);
            m.give(queue, buffers);
            assert_eq!(m.queues[queue].take_used().map(|used| used.1), Some(0), "{queue} {buffers:?}");
        }
    }
    assert!(m.host.fault().is_none());
    assert!(m.zero_pages().is_empty());
}

#[test]
fn reports_of_parts_of_pages_take_nothing() {
    let mut m = machine(config(None), ALL);
    m.give(3, &[(300 * PAGE + 1, 4095, true), (301 * PAGE + 8, 4096, true), (310 * PAGE - 1, 4098, true)]);
    assert_eq!(m.zero_pages(), [310]);
    assert_eq!(m.counter("discarded_bytes"), PAGE);
}

#[test]
fn statistics_have_an_end_and_strange_ones_change_nothing() {
    let mut m = machine(config(None), ALL);
    let mut stats: Vec<(u16, u64)> = (0..64).map(|_| (3, 5)).collect();
    stats.extend((0..1000).map(|_| (3, 6)));
    m.send_stats(&stats);
    assert_eq!(m.control.info().stats[3], Some(5));
    for (raw, queue) in [(&[][..], 2), (&[1; 9], 2), (&[0; 11], 2)] {
        m.host.reset();
        m.begin(ALL);
        m.send(queue, raw);
        assert!(m.control.info().stats.iter().skip(1).all(Option::is_none));
    }
    // The second buffer waits behind the first.
    m.send_stats(&[(3, 9)]);
    assert_eq!(m.control.info().stats[3], None);
}

#[test]
fn a_buffer_of_statistics_that_goes_bad_while_it_waits_is_found() {
    let mut m = machine(config(Some(Duration::from_millis(5))), ALL);
    m.send_stats(&[(0, 1)]);
    for index in 0..64 {
        let bad = strato_virtio::mock::Descriptor { addr: RAM, len: 8, flags: 0, next: 0 };
        m.queues[2].write_descriptor(index, bad);
    }
    while m.host.fault().is_none() {
        m.host.turn(1000).unwrap();
    }
}

#[test]
fn a_driver_that_gives_its_rings_away_loses_them_and_nothing_else() {
    let mut m = machine(config(None), ALL);
    let pages: Vec<u32> = (0..256).collect();
    m.send_pages(0, &pages);
    m.settle();
    for queue in 0..5 {
        m.host.kick(queue);
    }
    m.host.reset();
    m.begin(ALL);
    m.send_pages(0, &[300]);
    assert!(m.queues[0].take_used().is_some());
    assert_eq!(m.zero_pages(), [300]);
}
