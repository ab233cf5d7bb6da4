//! Reset, stop, pause, save, resize: with requests in flight, at any moment.

use strato_virtio::{Notification, Worker};

use super::gate::{gated, plain};
use super::*;

/// Starts `count` writes to sectors 0.. without waiting for them.
fn writes(m: &mut Machine, count: u64) {
    for place in 0..count {
        m.drivers[0].write(data(place), &[0xb0 + place as u8; 512]);
        m.offer(0, place, OUT, place, &[(data(place), 512, false)]);
    }
    m.host.kick(0);
}

fn taken(m: &mut Machine) -> usize {
    std::iter::from_fn(|| m.drivers[0].take_used()).count()
}

#[test]
fn stop_answers_everything_in_flight_and_start_goes_on_after_it() {
    for engine in ENGINES {
        let mut m = machine(engine);
        writes(&mut m, 10);
        assert_eq!(m.host.stop_ring(0), Some(10));
        assert_eq!(taken(&mut m), 10);
        for place in 0..10 {
            assert_eq!((m.status(place), m.on_disk(place)), (0, [0xb0 + place as u8; 512]));
        }
        // Offered while the ring stands still.
        m.offer(0, 0, IN, 0, &[(data(0), 512, true)]);
        m.host.kick(0);
        assert_eq!(taken(&mut m), 0);
        m.start_ring(0, 10);
        m.wait(0);
        assert_eq!(m.drivers[0].read(data(0), 512), [0xb0; 512]);
    }
}

#[test]
fn pause_leaves_no_request_in_flight_and_touches_nothing_until_the_end() {
    for engine in ENGINES {
        let mut m = machine(engine);
        writes(&mut m, 10);
        m.host.pause();
        assert_eq!(taken(&mut m), 10);
        m.offer(0, 0, IN, 1, &[(data(0), 512, true)]);
        m.host.kick(0);
        while m.host.turn(0).unwrap() {}
        assert_eq!((taken(&mut m), m.status(0)), (0, 255));
        m.host.unpause();
        m.wait(0);
        assert_eq!(m.drivers[0].read(data(0), 512), [0xb1; 512]);
    }
}

#[test]
fn reset_in_mid_flight_answers_nothing_and_the_next_driver_starts_clean() {
    for engine in ENGINES {
        let mut m = machine(engine);
        for round in 0..20 {
            writes(&mut m, 1 + round);
            m.host.reset();
            let used = m.drivers[0].used_idx();
            while m.host.turn(0).unwrap() {}
            assert_eq!(m.drivers[0].used_idx(), used, "nothing after the reset");
            m.start_driver(VIRTIO_F_VERSION_1 | F_FLUSH);
            assert_eq!(m.ask(IN, 40, &[(DATA, 512, true)]), (0, 513));
            assert_eq!(m.drivers[0].read(DATA, 512), [41; 512]);
        }
    }
}

#[test]
fn reset_gives_up_what_is_in_flight() {
    let (mut m, gate) = plain();
    writes(&mut m, 5);
    m.host.reset();
    assert_eq!((gate.waiting(), m.drivers[0].used_idx()), (0, 0));
    m.start_driver(VIRTIO_F_VERSION_1);
    m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    gate.succeed(0);
    m.wait(0);
    assert_eq!(m.status(0), 0);
}

/// The class of a use after free in asynchronous completions: memory of requests in flight outlives the
/// device, the mapping and the request.
#[test]
fn device_dropped_in_mid_flight_waits_for_its_requests() {
    for engine in ENGINES {
        for _ in 0..20 {
            let file = disk_file(SECTORS);
            let mut m = start(Block::new(config(&file, engine)).unwrap(), file, VIRTIO_F_VERSION_1 | F_FLUSH);
            writes(&mut m, 12);
            m.offer(0, 13, FLUSH, 0, &[]);
            m.host.kick(0);
            let Machine { host, drivers, ram, .. } = m;
            let weak = Arc::downgrade(&ram);
            drop((drivers, ram));
            drop(host);
            assert_eq!(weak.strong_count(), 0, "nothing holds guest memory any more");
        }
    }
}

#[test]
fn memory_is_replaced_only_after_what_is_in_flight() {
    for engine in ENGINES {
        let mut m = machine(engine);
        writes(&mut m, 10);
        let old = std::mem::replace(&mut m.ram, guest_ram(RAM));
        // The new memory begins as the copy of the old one that a real front end would see there.
        let copy = |from: &GuestRamHandle, to: &GuestRamHandle| {
            use vm_memory::{Bytes, GuestAddress};
            let mut all = vec![0; RAM];
            from.read_slice(&mut all, GuestAddress(0)).unwrap();
            to.write_slice(&all, GuestAddress(0)).unwrap();
        };
        copy(&old, &m.ram);
        m.host.set_memory(m.ram.clone()).unwrap();
        assert_eq!(m.drivers[0].used_idx(), 10, "answered in the old memory");
        assert_eq!(Arc::strong_count(&old), 2, "the test's and its driver's");
    }
}

/// Requests that wait for those in flight must not be forgotten when a drain ends the wait.
#[test]
fn drain_for_one_queue_lets_the_held_requests_of_another_go_on() {
    let (mut m, gate) = gated(9, Limits::default(), VIRTIO_F_VERSION_1 | (1 << 12));
    for queue in 0..9 {
        while m.drivers[usize::from(queue)].free_descriptors() >= 2 {
            m.offer(queue, 0, FLUSH, 0, &[]);
        }
        m.host.kick(queue);
    }
    assert_eq!(gate.waiting(), 256);
    m.host.stop_ring(0);
    m.host.turn(0).unwrap();
    assert_eq!(gate.waiting(), 32, "those of the last queue");
}

#[test]
fn saved_state_is_taken_with_nothing_in_flight_and_fits_its_disk_only() {
    for engine in ENGINES {
        let mut m = machine(engine);
        writes(&mut m, 10);
        let saved = m.host.save();
        assert_eq!(taken(&mut m), 10);
        let rings = m.host.restore(&saved).unwrap();
        assert_eq!(rings[0], Some((m.drivers[0].layout(), 10)));
        let smaller = memory_file(8);
        let other = Block::new(config(&smaller, engine)).unwrap();
        let mut other = DeviceHost::new(Box::new(other), Box::new(MockNotifier::default())).unwrap();
        assert!(other.restore(&saved).is_err());
        for len in 0..saved.len() {
            assert!(m.host.restore(&saved[..len]).is_err());
        }
    }
}

#[test]
fn state_of_the_first_version_is_understood() {
    use strato_virtio::record::{RecordWriter, kind};
    let old = RecordWriter::new(kind(*b"BLK "), 1).u64(SECTORS).finish();
    let saved = state::restore(&old).unwrap();
    assert_eq!(saved, state::Saved { sectors: SECTORS, writeback: None });
    let bad = RecordWriter::new(kind(*b"BLK "), 2).u64(SECTORS).u8(3).finish();
    assert!(state::restore(&bad).is_err());
}

#[test]
fn resize_tells_the_driver_and_moves_the_end() {
    for engine in ENGINES {
        let mut m = machine(engine);
        m.notifier.take();
        m.file.set_len(100 * 512 + 17).unwrap();
        assert_eq!(m.control.resize().unwrap(), 100 * 512);
        m.host.turn(PATIENCE_MS).unwrap();
        assert_eq!(m.notifier.take(), [Notification::Config]);
        assert_eq!(m.host.config().get(0, 8), Some(&100u64.to_le_bytes()[..]));
        assert_eq!(m.ask(OUT, 99, &[(DATA, 512, false)]).0, 0);
        m.file.set_len(10 * 512).unwrap();
        m.control.resize().unwrap();
        m.host.turn(PATIENCE_MS).unwrap();
        assert_eq!(m.ask(OUT, 10, &[(DATA, 512, false)]).0, 1);
        assert_eq!(m.ask(IN, 9, &[(DATA, 512, true)]).0, 0);
        assert_eq!(m.file.metadata().unwrap().len(), 10 * 512);
        m.notifier.take();
        m.control.resize().unwrap();
        m.host.turn(PATIENCE_MS).unwrap();
        assert_eq!(m.notifier.take(), [], "nothing changed");
    }
}

/// The class of a doorbell lost between DRIVER_OK and activation.
#[test]
fn requests_made_before_the_ring_starts_are_served_without_a_kick() {
    for engine in ENGINES {
        let mut m = machine(engine);
        m.host.reset();
        assert!(m.host.set_features(VIRTIO_F_VERSION_1));
        let (driver, _) = MockQueue::new(&m.ram, 0x1000, RING_SIZE);
        m.drivers[0] = driver;
        m.offer(0, 0, IN, 3, &[(DATA, 512, true)]);
        m.start_ring(0, 0);
        m.wait(0);
        assert_eq!(m.drivers[0].read(DATA, 1), [4]);
    }
}

/// The class of one slow disk that starves every device of a shared thread: each has its own.
#[test]
fn stuck_disk_leaves_another_one_alone() {
    let (m, gate) = plain();
    let stuck = Worker::start("stuck", m.host).unwrap();
    let mut drivers = m.drivers;
    for _ in 0..10 {
        drivers[0].offer(&[(header(0), 16, false), (data(0), 512, true), (status(0), 1, true)]).unwrap();
        stuck.call(|host| host.kick(0)).unwrap();
    }
    assert_eq!(gate.waiting(), 10);
    let mut other = machine(EngineChoice::Auto);
    assert_eq!(other.ask(IN, 0, &[(DATA, 512, true)]).0, 0);
    assert_eq!(gate.waiting(), 10);
}

/// The class of epoll spinning: an idle device is left alone by its own descriptors.
#[test]
fn idle_device_is_not_woken_by_its_own_descriptors() {
    for engine in ENGINES {
        let mut m = machine(engine);
        writes(&mut m, 10);
        for _ in 0..10 {
            m.wait(0);
        }
        while m.host.turn(0).unwrap() {}
        assert!(!m.host.turn(0).unwrap());
        m.control.resize().unwrap();
        while m.host.turn(0).unwrap() {}
        assert!(!m.host.turn(20).unwrap());
    }
}
