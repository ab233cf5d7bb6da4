//! Drivers that lie. The answer is an error, an empty answer or a device that waits for its reset.

use strato_virtio::mock::{Descriptor, NEXT, SeededRandom, WRITE};

use super::gate::plain;
use super::*;

#[test]
fn requests_without_room_for_header_or_status_come_back_empty() {
    for engine in ENGINES {
        let mut m = machine(engine);
        let lies = [
            &[(header(0), 15, false), (status(0), 1, true)][..],
            &[(header(0), 16, false)],
            &[(status(0), 9, true)],
            &[(header(0), 0, false), (status(0), 0, true)],
        ];
        for buffers in lies {
            m.drivers[0].offer(buffers).unwrap();
            m.host.kick(0);
            assert_eq!(m.wait(0).1, 0);
        }
        assert!(m.host.fault().is_none());
    }
}

#[test]
fn buffers_of_the_wrong_direction_fail() {
    for engine in ENGINES {
        let mut m = machine(engine);
        assert_eq!(m.ask(IN, 0, &[(DATA, 512, false)]).0, 1, "nothing to read into");
        assert_eq!(m.ask(OUT, 0, &[(DATA, 512, true)]).0, 1, "nothing to write");
        assert_eq!(m.ask(DISCARD, 0, &[(DATA, 16, true)]).0, 1);
        assert_eq!(m.ask(GET_ID, 0, &[(DATA, 20, false)]).0, 1);
        assert_eq!(m.on_disk(0), [1; 512]);
    }
}

#[test]
fn chain_that_loops_or_leaves_memory_asks_for_a_reset_and_a_reset_heals() {
    for engine in ENGINES {
        let mut m = machine(engine);
        for lie in [
            Descriptor { addr: header(0), len: 16, flags: NEXT, next: 0 },
            Descriptor { addr: header(0), len: 16, flags: NEXT, next: RING_SIZE },
            Descriptor { addr: RAM as u64 - 8, len: 16, flags: 0, next: 0 },
            Descriptor { addr: u64::MAX - 3, len: 16, flags: WRITE, next: 0 },
            Descriptor { addr: 0, len: u32::MAX, flags: WRITE, next: 0 },
        ] {
            m.drivers[0].write_descriptor(0, lie);
            m.drivers[0].publish(0);
            m.host.kick(0);
            assert!(m.host.fault().is_some(), "{lie:?}");
            m.host.reset();
            m.start_driver(VIRTIO_F_VERSION_1);
            assert_eq!(m.ask(IN, 0, &[(DATA, 512, true)]).0, 0);
        }
        m.drivers[0].set_avail_idx(1000);
        m.host.kick(0);
        assert!(m.host.fault().is_some());
    }
}

#[test]
fn fault_with_requests_in_flight_finishes_them_without_an_answer() {
    let (mut m, gate) = plain();
    m.offer(0, 0, IN, 0, &[(data(0), 512, true)]);
    m.drivers[0].write_descriptor(40, Descriptor { addr: 0, len: u32::MAX, flags: 0, next: 0 });
    m.drivers[0].publish(40);
    m.host.kick(0);
    assert!(m.host.fault().is_some());
    assert_eq!(gate.waiting(), 1);
    gate.succeed(0);
    m.host.turn(0).unwrap();
    assert_eq!((m.drivers[0].used_idx(), m.status(0)), (0, 255));
    m.host.reset();
    m.start_driver(VIRTIO_F_VERSION_1);
    m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    gate.succeed(0);
    m.wait(0);
}

/// What was checked is what is done: a header or range that changes after it was read changes nothing.
#[test]
fn header_that_changes_in_flight_changes_nothing() {
    let (mut m, gate) = plain();
    m.offer(0, 0, IN, 5, &[(data(0), 512, true)]);
    m.host.kick(0);
    m.drivers[0].write(header(0), &OUT.to_le_bytes());
    m.drivers[0].write(header(0) + 8, &u64::MAX.to_le_bytes());
    assert_eq!(gate.kinds(), ["read"]);
    gate.end(0, Ok(100));
    m.host.turn(0).unwrap();
    assert_eq!(gate.kinds(), ["read"]);
    gate.end(0, Ok(412));
    m.wait(0);
    assert_eq!((m.status(0), m.on_disk(5)), (0, [6; 512]));
}

#[test]
fn same_chain_offered_many_times_is_served_or_refused() {
    for engine in ENGINES {
        let mut m = machine(engine);
        let head = m.offer(0, 0, IN, 0, &[(data(0), 512, true)]);
        for _ in 0..RING_SIZE - 1 {
            m.drivers[0].publish(head);
        }
        m.host.kick(0);
        while m.host.turn(0).unwrap() {}
        m.host.pause();
        assert!(m.host.fault().is_some() || m.drivers[0].used_idx() == RING_SIZE);
    }
}

#[test]
fn configuration_is_written_inside_its_fields_only() {
    let mut m = machine(EngineChoice::Auto);
    let before = m.host.config();
    for (offset, data) in [(0, &[9; 8][..]), (32, &[0, 0]), (32, &[2]), (33, &[0]), (59, &[1])] {
        assert!(m.host.write_config(offset, data));
        assert_eq!(m.host.config(), before, "{offset}");
    }
    assert!(!m.host.write_config(60, &[0]));
    assert!(!m.host.write_config(u32::MAX, &[0; 8]));
    assert!(m.host.config().get(56, 8).is_none());
}

#[test]
fn random_requests_never_harm_the_rest_of_the_file() {
    for seed in 0..100 {
        let mut m = machine(ENGINES[seed as usize % 2]);
        let mut random = SeededRandom::new(seed);
        for _ in 0..100 {
            let operation = [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99][random.below(7) as usize];
            let sector = [random.below(70), random.next_u64()][random.below(2) as usize];
            let len = [random.below(9) * 512, random.below(5000)][random.below(2) as usize] as u32;
            let writable =
                if random.below(8) == 0 { operation != IN } else { operation == IN || operation == GET_ID };
            m.drivers[0].write(DATA, &random.next_u64().to_le_bytes());
            let (status, used) = m.ask(operation, sector, &[(DATA, len, writable)]);
            assert!(status <= 2 && used <= len + 1, "seed {seed}");
        }
        assert!(m.host.fault().is_none());
        assert_eq!(m.file.metadata().unwrap().len(), SECTORS * 512, "seed {seed}");
    }
}
