//! Every device against every lie: it answers by the specification or asks for a reset, changes no memory that
//! is not its own, and serves the next driver.
#![allow(missing_docs)]

use strato_proof::lies::{Answer, LIES};
use strato_proof::machine::{Machine, RAM, WRITABLE};
use strato_proof::side::CARRIERS;
use strato_proof::subject::{KINDS, QueueUse};
use strato_virtio::{RING_FEATURES, RingLayout, RingStart, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};

#[test]
fn every_lie_in_every_ring_is_survived() {
    for (kind, carrier) in KINDS.iter().flat_map(|kind| CARRIERS.map(|carrier| (kind, carrier))) {
        let mut machine = Machine::carried(carrier, kind, u64::MAX);
        for queue in 0..machine.queue_count() {
            for lie in LIES {
                let what = format!("{} {carrier:?}: {} in queue {queue}", kind.name, lie.name);
                machine.reset();
                machine.paint();
                (lie.tell)(&mut machine.queues[usize::from(queue)]);
                let before = machine.forbidden();
                machine.kick(queue);
                machine.settle();
                if lie.answer == Answer::Reset && machine.queue_use(queue) == QueueUse::Requests {
                    machine.wait_for_fault(&what);
                }
                machine.check_forbidden(&before, &what);
                machine.check_fault(&what);
                machine.prove_alive();
            }
        }
    }
}

/// A lie that the device has not looked at yet when it gets other work, and one behind good requests.
#[test]
fn lies_behind_good_requests_do_not_spoil_those() {
    for kind in KINDS {
        for lie in LIES.iter().filter(|lie| lie.answer == Answer::Reset) {
            let mut machine = Machine::new(kind);
            machine.prove_service();
            let answered = machine.queues[0].used_idx();
            (lie.tell)(&mut machine.queues[0]);
            machine.kick_all();
            machine.settle();
            assert!(machine.queues[0].used_idx() >= answered, "{}: {}", kind.name, lie.name);
            machine.prove_alive();
        }
    }
}

#[test]
fn rings_in_impossible_places_are_refused() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        let good = machine.layout(0);
        let end = RAM as u64;
        let mut bad = Vec::new();
        for size in [0, 3, 24, u16::MAX, 32769] {
            bad.push(RingLayout { size, ..good });
        }
        for address in [0, 1, end, end - 16, u64::MAX, u64::MAX - 15, 1 << 63] {
            bad.push(RingLayout { desc_table: address, ..good });
            bad.push(RingLayout { avail_ring: address, ..good });
            bad.push(RingLayout { used_ring: address, ..good });
        }
        bad.push(RingLayout { desc_table: good.desc_table + 8, ..good });
        bad.push(RingLayout { avail_ring: good.avail_ring + 1, ..good });
        bad.push(RingLayout { used_ring: good.used_ring + 2, ..good });
        for layout in bad {
            for queue in 0..machine.queue_count() {
                let start = RingStart { queue, layout, next_avail: 0, kick: None };
                assert!(machine.host.bare().start_ring(start).is_err(), "{}: {layout:?}", kind.name);
                assert!(!machine.host.bare().ring_running(queue));
                machine.kick(queue);
            }
        }
        let beyond = RingStart { queue: machine.queue_count(), layout: good, next_avail: 0, kick: None };
        assert!(machine.host.bare().start_ring(beyond).is_err());
        machine.prove_alive();
    }
}

#[test]
fn rings_that_overlap_each_other_are_survived() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        for size in [1, 2, 256, 32768] {
            for (avail, used) in [(0, 0), (0, 4), (4, 0), (2, 8), (16, 16)] {
                machine.reset();
                let at = WRITABLE;
                machine.queues[0].write(at, &[1; 4096]);
                for queue in 0..machine.queue_count() {
                    let layout =
                        RingLayout { size, desc_table: at, avail_ring: at + avail, used_ring: at + used };
                    let start = RingStart { queue, layout, next_avail: 0, kick: None };
                    machine.host.bare().start_ring(start).unwrap();
                }
                for _ in 0..8 {
                    machine.kick_all();
                    machine.settle();
                }
                machine.notifier.take();
                machine.prove_alive();
            }
        }
    }
}

#[test]
fn configuration_is_read_and_written_within_its_bounds_only() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        let len = machine.host.bare().info().config_len;
        assert_eq!(machine.host.bare().config().len(), len as usize, "{}", kind.name);
        for offset in (0..len + 8).chain([u32::MAX - 1, u32::MAX]) {
            for size in [0, 1, 2, 3, 4, 8, len, len + 1, u32::MAX] {
                let inside = offset.checked_add(size).is_some_and(|end| end <= len);
                let read = machine.host.bare().config().get(offset, size).map(<[u8]>::len);
                assert_eq!(read, inside.then_some(size as usize), "{} {offset}+{size}", kind.name);
                if size <= 64 {
                    let data = vec![0xff; size as usize];
                    assert_eq!(
                        machine.host.bare().write_config(offset, &data),
                        inside,
                        "{} {offset}",
                        kind.name
                    );
                }
            }
        }
        machine.prove_service();
        machine.prove_alive();
    }
}

#[test]
fn features_that_were_not_offered_are_refused_and_the_rest_works_in_any_choice() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        let offered = machine.host.bare().info().features;
        assert_eq!(offered & RING_FEATURES, RING_FEATURES, "{}", kind.name);
        machine.host.reset();
        for bit in 0..64 {
            let wanted = 1 << bit | VIRTIO_F_VERSION_1;
            assert_eq!(
                machine.host.bare().set_features(wanted),
                offered & wanted == wanted,
                "{} {bit}",
                kind.name
            );
        }
        assert!(
            !machine.host.bare().set_features(offered & !VIRTIO_F_VERSION_1),
            "{}: legacy driver",
            kind.name
        );
        for without in (0..64).map(|bit| 1u64 << bit).filter(|bit| offered & bit != 0) {
            if without != VIRTIO_F_VERSION_1 {
                CARRIERS
                    .iter()
                    .for_each(|carrier| Machine::carried(*carrier, kind, !without).prove_service());
            }
        }
        for carrier in CARRIERS {
            Machine::carried(carrier, kind, VIRTIO_F_EVENT_IDX).prove_service();
        }
    }
}

#[test]
fn new_features_for_a_device_at_work_are_survived() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        let offered = machine.host.bare().info().features;
        for bit in (0..64).filter(|bit| offered & 1 << bit != 0) {
            let _ = machine.host.bare().set_features(offered & !(1 << bit));
            machine.kick_all();
            machine.settle();
        }
        machine.prove_alive();
    }
}
