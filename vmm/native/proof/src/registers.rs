//! A guest that does anything to the registers of a device.

use std::sync::Arc;
use std::time::Duration;

use strato_virtio::mock::guest_ram;
use strato_virtio_mmio::mock::{MockDriver, at};

use crate::choices::Choices;
use crate::machine::{Machine, RAM, RING_STRIDE};
use crate::side::Carrier;
use crate::subject::KINDS;
use crate::{records, storm};

/// Writes anything anywhere for at most `steps` steps or until `choices` end; then the device has to serve an
/// honest driver.
pub fn run(choices: &mut Choices<'_>, steps: usize) {
    let kind = &KINDS[choices.below(KINDS.len() as u64) as usize];
    let mut machine = Machine::carried(Carrier::Mmio, kind, u64::MAX);
    for _ in 0..steps {
        if choices.exhausted() {
            break;
        }
        step(&mut machine, choices);
    }
    machine.host.unpause();
    machine.prove_alive();
}

fn step(machine: &mut Machine, choices: &mut Choices<'_>) {
    let queue = choices.below(u64::from(machine.queue_count())) as u16;
    match choices.below(24) {
        0..=3 => {
            // The mock driver counts descriptors; when it has lost count, it begins again.
            if machine.offer_request(queue, choices).is_none() {
                machine.reset();
            }
        }
        4 | 5 => machine.kick(queue),
        6 | 7 => machine.host_acts(choices),
        8 => storm::scribble(machine, choices),
        9 => machine.host.pause(),
        10 => machine.host.unpause(),
        11 => {
            let ram = match choices.below(4) {
                // Too small for the rings, or for some of the buffers.
                0 => guest_ram(RING_STRIDE as usize),
                1 => guest_ram(RAM / 2),
                _ => Arc::clone(machine.ram()),
            };
            // Refused or not: both are answers.
            let _ = machine.host.driver().device.set_memory(ram);
        }
        12 => {
            if choices.once_in(4) {
                let record = machine.host.save();
                records::restore_spoilt(machine, &record, choices);
            }
        }
        13 => {
            if choices.once_in(3) {
                machine.reset();
            }
        }
        _ => poke(machine.host.driver(), choices),
    }
}

/// What writes can be about.
const WRITABLE: [u64; 16] = [
    at::DEVICE_FEATURES_SEL,
    at::DRIVER_FEATURES,
    at::DRIVER_FEATURES_SEL,
    at::QUEUE_SEL,
    at::QUEUE_NUM,
    at::QUEUE_READY,
    at::QUEUE_NOTIFY,
    at::INTERRUPT_ACK,
    at::STATUS,
    at::QUEUE_DESC,
    at::QUEUE_DESC + 4,
    at::QUEUE_DRIVER,
    at::QUEUE_DEVICE,
    at::QUEUE_DEVICE + 4,
    at::SHM_SEL,
    at::QUEUE_RESET,
];

/// One thing that one vCPU does to the registers. Panics if they read as they never may.
pub fn poke(driver: &MockDriver, choices: &mut Choices<'_>) {
    match choices.below(10) {
        0..=2 => driver.write(choices.one_of(&WRITABLE), value(choices)),
        // Status bits in the order in which drivers set them, or nearly.
        3 | 4 => driver.set_status(choices.one_of(&[0, 1, 3, 3, 11, 11, 15, 15, 128, 64 | 15])),
        5 => {
            let mut data = vec![0; choices.below(17) as usize];
            choices.fill(&mut data);
            let offset = if choices.once_in(8) { choices.number() } else { choices.below(0x120) };
            if choices.once_in(2) {
                driver.device.write(offset, &data);
            } else {
                driver.device.read(offset, &mut data);
            }
        }
        6 => {
            let mut data = vec![0; choices.below(9) as usize];
            let offset = at::CONFIG + choices.below(80);
            if choices.once_in(3) {
                choices.fill(&mut data);
                driver.device.write(offset, &data);
            }
            driver.device.read(offset, &mut data);
        }
        7 => set_up_queue(driver, choices),
        8 => drop(driver.interrupted(Duration::ZERO)),
        _ => check(driver),
    }
}

fn value(choices: &mut Choices<'_>) -> u32 {
    match choices.below(4) {
        0 => choices.number() as u32,
        1 => 1 << choices.below(32),
        2 => choices.below(RAM as u64) as u32 & !15,
        _ => choices.below(8) as u32,
    }
}

fn set_up_queue(driver: &MockDriver, choices: &mut Choices<'_>) {
    driver.write(at::QUEUE_SEL, choices.below(6) as u32);
    driver.write(at::QUEUE_NUM, 1 << choices.below(10));
    for offset in [at::QUEUE_DESC, at::QUEUE_DRIVER, at::QUEUE_DEVICE] {
        let address = if choices.once_in(8) { choices.number() } else { choices.below(RAM as u64) & !15 };
        driver.write_pair(offset, address);
    }
    driver.write(at::QUEUE_READY, choices.below(2) as u32);
}

fn check(driver: &MockDriver) {
    assert_eq!(driver.read(at::MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.read(at::VERSION), 2);
    assert_eq!(driver.read(at::DEVICE_ID), driver.device.info().device_type);
    let status = driver.status();
    assert_eq!(status & !(1 | 2 | 4 | 8 | 64 | 128), 0, "status {status:#x}");
    assert!(driver.read(at::QUEUE_READY) <= 1);
    assert_eq!(driver.read(at::INTERRUPT_STATUS) & !3, 0);
    let most = driver.read(at::QUEUE_NUM_MAX);
    assert!(driver.device.info().queue_sizes.iter().any(|size| u32::from(*size) == most) || most == 0);
}
