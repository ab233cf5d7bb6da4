//! Every device stopped, paused, saved, reset or given other memory at any moment, and with a driver that
//! changes what it has already said.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strato_proof::choices::Choices;
use strato_proof::machine::{Machine, RAM, READABLE, RING_STRIDE, WRITABLE_END};
use strato_proof::records::restore_spoilt;
use strato_proof::side::{CARRIERS, Carrier, Side};
use strato_proof::storm::{finish, honest_step};
use strato_proof::subject::{KINDS, Kind, QueueUse};
use strato_virtio::mock::guest_ram;
use vm_memory::{Bytes, GuestAddress};

fn on_all_carriers() -> impl Iterator<Item = (&'static Kind, Carrier)> {
    KINDS.iter().flat_map(|kind| CARRIERS.map(|carrier| (kind, carrier)))
}

/// Work in progress, some of it not kicked for yet.
fn work(machine: &mut Machine, choices: &mut Choices<'_>) {
    for _ in 0..choices.below(60) {
        honest_step(machine, choices);
    }
}

/// Whatever happens on the host and however long one waits: guest memory stays as it is.
fn stands_still(machine: &mut Machine, choices: &mut Choices<'_>, what: &str) {
    let before = machine.memory();
    for _ in 0..5 {
        machine.host_acts(choices);
    }
    machine.kick_all();
    machine.host.turn(1);
    if let Side::Bare(_) = machine.host {
        machine.settle();
    }
    assert!(machine.memory() == before, "{what}: guest memory changed");
}

#[test]
fn device_that_is_stopped_at_any_moment_touches_nothing() {
    for kind in KINDS {
        for seed in 0..24 {
            let what = format!("{} seed {seed}", kind.name);
            let choices = &mut Choices::seeded(seed);
            let mut machine = Machine::new(kind);
            work(&mut machine, choices);
            let queues = machine.queue_count();
            let before = machine.memory();
            let host = machine.host.bare();
            match seed % 4 {
                0 => host.reset(),
                1 => host.forget_memory(),
                2 => {
                    for queue in 0..queues {
                        host.stop_ring(queue);
                    }
                }
                _ => {
                    let other = guest_ram(RAM);
                    other.write_slice(&before, GuestAddress(0)).unwrap();
                    host.set_memory(other).unwrap();
                }
            }
            stands_still(&mut machine, choices, &what);
            assert!(!machine.host.broken(), "{what}: {}", machine.host.fault());
            machine.prove_alive();
        }
    }
}

#[test]
fn device_behind_registers_that_is_reset_at_any_moment_touches_nothing() {
    for kind in KINDS {
        for seed in 0..24 {
            let what = format!("{} seed {seed}", kind.name);
            let choices = &mut Choices::seeded(seed);
            let mut machine = Machine::carried(Carrier::Mmio, kind, u64::MAX);
            work(&mut machine, choices);
            let device = &machine.host.driver().device;
            match seed % 3 {
                // By the driver, by the machine, and because the device is taken out of it.
                0 => machine.host.reset(),
                1 => device.reset(),
                _ => device.release(),
            }
            stands_still(&mut machine, choices, &what);
            assert_eq!(machine.host.driver().status(), 0, "{what}");
            machine.prove_alive();
        }
    }
}

#[test]
fn device_that_is_paused_at_any_moment_loses_nothing() {
    for (kind, carrier) in on_all_carriers() {
        for seed in 0..24 {
            let choices = &mut Choices::seeded(seed);
            let mut machine = Machine::carried(carrier, kind, u64::MAX);
            for _ in 0..3 {
                work(&mut machine, choices);
                machine.host.pause();
                stands_still(&mut machine, choices, &format!("{} seed {seed}", kind.name));
                // The driver does not know, and goes on.
                for queue in 0..machine.queue_count() {
                    machine.offer_request(queue, choices);
                    machine.kick(queue);
                }
                machine.host.unpause();
            }
            finish(&mut machine, choices);
        }
    }
}

#[test]
fn ring_that_is_stopped_at_any_moment_goes_on_where_it_was() {
    for kind in KINDS {
        for seed in 0..24 {
            let choices = &mut Choices::seeded(seed);
            let mut machine = Machine::new(kind);
            for _ in 0..3 {
                work(&mut machine, choices);
                let positions: Vec<u16> = (0..machine.queue_count())
                    .map(|queue| machine.host.bare().stop_ring(queue).unwrap())
                    .collect();
                for (queue, position) in positions.into_iter().enumerate() {
                    let used = machine.queues[queue].used_idx();
                    assert_eq!(position, used, "{}: taken but not given back", kind.name);
                    machine.start(queue as u16, position);
                }
            }
            finish(&mut machine, choices);
        }
    }
}

#[test]
fn device_that_is_saved_at_any_moment_goes_on_as_another_one() {
    for (kind, carrier) in on_all_carriers() {
        for seed in 0..24 {
            let choices = &mut Choices::seeded(seed);
            let mut machine = Machine::carried(carrier, kind, u64::MAX);
            for _ in 0..3 {
                work(&mut machine, choices);
                if choices.once_in(2) {
                    machine.host.pause();
                }
                machine.move_to_another_device();
            }
            finish(&mut machine, choices);
            machine.prove_alive();
        }
    }
}

#[test]
fn spoilt_saved_state_is_taken_or_refused_and_no_more() {
    for (kind, carrier) in on_all_carriers() {
        let choices = &mut Choices::seeded(1);
        let mut machine = Machine::carried(carrier, kind, u64::MAX);
        work(&mut machine, choices);
        let record = machine.host.save();
        for _ in 0..2000 {
            restore_spoilt(&mut machine, &record, choices);
        }
        machine.prove_alive();
    }
}

#[test]
fn requests_that_change_while_they_are_read_are_survived() {
    for (kind, carrier) in on_all_carriers() {
        let mut machine = Machine::carried(carrier, kind, u64::MAX);
        let rings = RING_STRIDE * u64::from(machine.queue_count());
        let stop = AtomicBool::new(false);
        let ram = Arc::clone(machine.ram());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let choices = &mut Choices::seeded(3);
                while !stop.load(Ordering::Relaxed) {
                    // Rings (descriptors, indices, used entries) and what they point to.
                    let at = if choices.once_in(2) {
                        RING_STRIDE + choices.below(rings)
                    } else {
                        READABLE + choices.below(WRITABLE_END - READABLE)
                    };
                    let bit = 1u8 << choices.below(8);
                    let byte: u8 = ram.read_obj(GuestAddress(at)).unwrap();
                    ram.write_obj(byte ^ bit, GuestAddress(at)).unwrap();
                }
            });
            let choices = &mut Choices::seeded(4);
            for _ in 0..400 {
                machine.reset();
                for _ in 0..12 {
                    let queue = choices.below(u64::from(machine.queue_count())) as u16;
                    machine.offer_request(queue, choices);
                    machine.kick(queue);
                    machine.host_acts(choices);
                    machine.host.turn(0);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        machine.prove_alive();
    }
}

/// Class: a kick that comes before the device listens.
#[test]
fn requests_offered_before_the_rings_start_are_served_without_a_kick() {
    for kind in KINDS {
        let choices = &mut Choices::seeded(5);
        let mut machine = Machine::new(kind);
        let queues: Vec<u16> = (0..machine.queue_count()).collect();
        for &queue in &queues {
            machine.host.bare().stop_ring(queue);
            machine.offer_request(queue, choices);
        }
        for &queue in &queues {
            machine.start(queue, 0);
        }
        finish(&mut machine, choices);
    }
}

/// Class: a device that has nothing to do and wakes up all the same.
#[test]
fn idle_device_does_not_wake_up() {
    for kind in KINDS {
        let choices = &mut Choices::seeded(6);
        let mut machine = Machine::new(kind);
        work(&mut machine, choices);
        machine.kick_all();
        finish(&mut machine, choices);
        machine.rest();
        for _ in 0..20 {
            assert!(!machine.host.turn(0), "{}", kind.name);
        }
        let waits = (0..machine.queue_count()).any(|queue| machine.queue_use(queue) == QueueUse::Buffers);
        assert!(waits || machine.outstanding(0) == 0);
    }
}

/// The kinds with limits are no use if nothing is ever held up by them.
#[test]
fn limits_hold_requests_up() {
    let limited = |kind: &&Kind| kind.name.ends_with("-limited");
    let held_up = |kind: &Kind, seed| {
        let choices = &mut Choices::seeded(seed);
        let mut machine = Machine::new(kind);
        for queue in 0..machine.queue_count() {
            while machine.offer_request(queue, choices).is_some() {}
        }
        machine.kick_all();
        machine.settle();
        machine.reap();
        let mut queues = 0..machine.queue_count();
        queues.any(|queue| machine.queue_use(queue) == QueueUse::Requests && machine.outstanding(queue) > 0)
    };
    assert_eq!(KINDS.iter().filter(limited).count(), 3);
    for kind in KINDS.iter().filter(limited) {
        assert!((0..20).any(|seed| held_up(kind, seed)), "{}", kind.name);
    }
}
