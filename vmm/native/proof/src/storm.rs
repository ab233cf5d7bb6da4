//! Random operations on one device: by an honest driver, and by one that writes anything anywhere.

use std::sync::Arc;

use strato_virtio::mock::{Descriptor, guest_ram};
use strato_virtio::{RingLayout, RingStart};
use vm_memory::{Bytes, GuestAddress};

use crate::choices::Choices;
use crate::machine::{Machine, RAM, RING_SIZE, RING_STRIDE};
use crate::subject::{Kind, QueueUse, Request};

/// One step of a driver that keeps the rules (its requests need not make sense).
pub fn honest_step(machine: &mut Machine, choices: &mut Choices<'_>) {
    let queue = choices.below(u64::from(machine.queue_count())) as u16;
    match choices.below(8) {
        0..=3 => {
            machine.offer_request(queue, choices);
        }
        4 => machine.kick(queue),
        5 => machine.host_acts(choices),
        6 => {
            machine.host.turn(0);
        }
        _ => machine.reap(),
    }
}

/// Has the device answer every request that it was given; panics if one is lost.
pub fn finish(machine: &mut Machine, choices: &mut Choices<'_>) {
    let deadline = machine.deadline();
    loop {
        machine.reap();
        assert!(!machine.host.broken(), "{}: {}", machine.name, machine.host.fault());
        let queues = 0..machine.queue_count();
        let (requests, buffers): (Vec<_>, Vec<_>) =
            queues.partition(|&queue| machine.queue_use(queue) == QueueUse::Requests);
        if requests.iter().all(|&queue| machine.outstanding(queue) == 0) {
            return;
        }
        let left: Vec<_> = requests.iter().map(|&queue| (queue, machine.outstanding(queue))).collect();
        assert!(std::time::Instant::now() < deadline, "{} lost requests: {left:?}", machine.name);
        // What the device has to say must not hold up the rest.
        for queue in buffers {
            while machine.offer(queue, &Request { readable: Vec::new(), writable: 4096 }, choices).is_some() {
            }
            machine.kick(queue);
        }
        machine.host.turn(5);
    }
}

/// Writes anything anywhere, and does anything at any moment, for at most `steps` steps or until `choices`
/// end; then the device has to serve an honest driver.
pub fn run(kind: &Kind, choices: &mut Choices<'_>, steps: usize) {
    let mut machine = Machine::new(kind);
    for _ in 0..steps {
        if choices.exhausted() {
            break;
        }
        wild_step(&mut machine, choices);
    }
    machine.notifier.take();
    machine.host.unpause();
    machine.prove_alive();
}

fn wild_step(machine: &mut Machine, choices: &mut Choices<'_>) {
    let queue = choices.below(u64::from(machine.queue_count())) as u16;
    match choices.below(24) {
        0..=4 => {
            // The mock driver counts descriptors; when it has lost count, it begins again.
            if machine.offer_request(queue, choices).is_none() {
                machine.reset();
            }
        }
        5..=7 => machine.kick(queue),
        8 | 9 => {
            machine.host.turn(0);
        }
        10 | 11 => machine.host_acts(choices),
        12 => write_descriptor(machine, queue, choices),
        13 => {
            let head = choices.below(u64::from(RING_SIZE) + 1) as u16;
            machine.queues[usize::from(queue)].publish(head);
        }
        14 => machine.queues[usize::from(queue)].set_avail_idx(choices.number() as u16),
        15 => scribble(machine, choices),
        16 => {
            let (offset, len) = (choices.below(80) as u32, choices.below(16) as usize);
            let mut data = vec![0; len];
            choices.fill(&mut data);
            machine.host.bare().write_config(offset, &data);
            let _ = machine.host.bare().config().get(offset, len as u32);
        }
        17 => {
            let features = machine.host.bare().info().features & choices.number() | 1 << 32;
            machine.host.bare().set_features(features);
        }
        18 => stop_or_start(machine, queue, choices),
        19 => machine.host.pause(),
        20 => machine.host.unpause(),
        21 => change_memory(machine, choices),
        22 => {
            if choices.once_in(4) {
                let record = machine.host.save();
                crate::records::restore_spoilt(machine, &record, choices);
            }
        }
        _ => {
            if choices.once_in(3) {
                machine.reset();
            }
        }
    }
}

fn write_descriptor(machine: &mut Machine, queue: u16, choices: &mut Choices<'_>) {
    let driver = &machine.queues[usize::from(queue)];
    let descriptor = Descriptor {
        addr: if choices.once_in(8) { choices.number() } else { choices.below(RAM as u64 + 64) },
        len: choices.length(),
        flags: choices.below(8) as u16,
        next: choices.below(u64::from(RING_SIZE) + 1) as u16,
    };
    driver.write_descriptor(choices.below(u64::from(RING_SIZE)) as u16, descriptor);
}

/// Writes anything into the rings or anywhere else.
pub(crate) fn scribble(machine: &mut Machine, choices: &mut Choices<'_>) {
    let rings = RING_STRIDE * (1 + u64::from(machine.queue_count()));
    let at = if choices.once_in(2) { choices.below(rings) } else { choices.below(RAM as u64 - 16) };
    let mut data = [0; 16];
    let len = 1 + choices.below(16) as usize;
    choices.fill(&mut data[..len]);
    machine.ram().write_slice(&data[..len], GuestAddress(at)).unwrap();
}

fn stop_or_start(machine: &mut Machine, queue: u16, choices: &mut Choices<'_>) {
    if choices.once_in(2) {
        machine.host.bare().stop_ring(queue);
        return;
    }
    let good = machine.layout(queue);
    let layout = match choices.below(3) {
        0 => good,
        1 => RingLayout { size: 1 << choices.below(16), ..good },
        _ => RingLayout { used_ring: choices.below(RAM as u64) & !3, ..good },
    };
    let start = RingStart { queue, layout, next_avail: choices.below(64) as u16, kick: None };
    // Refused or not: both are answers.
    let _ = machine.host.bare().start_ring(start);
}

fn change_memory(machine: &mut Machine, choices: &mut Choices<'_>) {
    let ram = match choices.below(4) {
        0 => return machine.host.bare().forget_memory(),
        // Too small for the rings, or for some of the buffers.
        1 => guest_ram(RING_STRIDE as usize),
        2 => guest_ram(RAM / 2),
        _ => Arc::clone(machine.ram()),
    };
    // Refused or not: both are answers.
    let _ = machine.host.bare().set_memory(ram);
}
