//! Everything that is fuzzed, by name: what `make fuzz` runs for long, tests run briefly from fixed seeds.

use strato_virtio::record::{RecordReader, kind};

use crate::choices::Choices;
use crate::machine::Machine;
use crate::side::Carrier;
use crate::subject::KINDS;
use crate::{kernels, messages, records, registers, storm};

/// The names: one for each device, and those that belong to none.
pub fn names() -> Vec<&'static str> {
    let others = ["kernel", "saved-state", "saved-registers", "vhost-user", "virtio-mmio"];
    KINDS.iter().map(|kind| kind.name).chain(others).collect()
}

/// Makes the process what a Rust program is at the start of `main`, for a fuzzer whose `main` is not Rust's.
pub fn prepare_process() {
    // SAFETY: no handler is installed; a signal is ignored from now on, as Rust's own runtime does.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Runs a target. Panics if it is not survived.
pub fn run(name: &str, choices: &mut Choices<'_>) {
    match name {
        "kernel" => kernels::run(choices),
        "saved-state" => saved_state(Carrier::Bare, choices),
        "saved-registers" => saved_state(Carrier::Mmio, choices),
        "vhost-user" => messages::run(choices, 64),
        "virtio-mmio" => registers::run(choices, 200),
        device => {
            let kind = KINDS.iter().find(|kind| kind.name == device);
            storm::run(kind.unwrap_or_else(|| panic!("no target {device}")), choices, 400);
        }
    }
}

/// Saved state of some device, spoilt, and a record of nothing but noise.
fn saved_state(carrier: Carrier, choices: &mut Choices<'_>) {
    let device = &KINDS[choices.below(KINDS.len() as u64) as usize];
    let mut machine = Machine::carried(carrier, device, u64::MAX);
    for _ in 0..choices.below(16) {
        storm::honest_step(&mut machine, choices);
    }
    let record = machine.host.save();
    records::restore_spoilt(&mut machine, &record, choices);
    let mut noise = vec![0; choices.below(200) as usize];
    choices.fill(&mut noise);
    assert!(machine.host.restore(&noise).is_err());
    if let Some(header) = noise.get_mut(..12) {
        // Past the checks of the header.
        header[..4].copy_from_slice(b"TEST");
        header[4..8].copy_from_slice(&1u32.to_le_bytes());
        let len = noise.len() as u32 - 12;
        noise[8..12].copy_from_slice(&len.to_le_bytes());
        let mut reader = RecordReader::open(&noise, kind(*b"TEST"), 1).unwrap();
        for _ in 0..20 {
            match choices.below(6) {
                0 => drop(reader.u8()),
                1 => drop(reader.u16()),
                2 => drop(reader.u32()),
                3 => drop(reader.u64()),
                4 => drop(reader.flag("flag")),
                _ => drop(reader.bytes()),
            }
        }
        let _ = reader.finish();
    }
    machine.prove_alive();
}
