//! Every device behind registers that several vCPUs use at once.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use strato_proof::choices::Choices;
use strato_proof::machine::Machine;
use strato_proof::registers::poke;
use strato_proof::side::Carrier;
use strato_proof::subject::KINDS;
use strato_virtio_mmio::mock::at;

#[test]
fn vcpus_that_do_anything_at_once_are_survived() {
    for kind in KINDS {
        let mut machine = Machine::carried(Carrier::Mmio, kind, u64::MAX);
        let driver = machine.host.driver().clone();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for vcpu in 0..3 {
                let (driver, done) = (driver.clone(), &done);
                scope.spawn(move || {
                    let choices = &mut Choices::seeded(vcpu);
                    while !done.load(Ordering::Relaxed) {
                        poke(&driver, choices);
                    }
                });
            }
            let choices = &mut Choices::seeded(9);
            for _ in 0..300 {
                machine.host_acts(choices);
                match choices.below(6) {
                    0 => machine.host.pause(),
                    1 => machine.host.unpause(),
                    2 => machine.host.reset(),
                    3 => drop(machine.host.save()),
                    _ => machine.kick_all(),
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        machine.host.unpause();
        machine.prove_alive();
    }
}

/// Class: a configuration that the shell remembers while the device has another.
#[test]
fn configuration_that_is_read_is_the_one_that_the_device_has() {
    for kind in KINDS {
        let choices = &mut Choices::seeded(11);
        let mut machine = Machine::carried(Carrier::Mmio, kind, u64::MAX);
        let len = machine.host.driver().device.info().config_len;
        for round in 0..100 {
            machine.host_acts(choices);
            match choices.below(4) {
                0 => machine.host.driver().device.write(at::CONFIG + choices.below(80), &[round]),
                1 => machine.reset(),
                2 => {
                    let record = machine.host.save();
                    let _ = machine.host.restore(&record);
                }
                _ => {}
            }
            machine.settle();
            let remembered = machine.host.config(0, len);
            // A write of nothing changes nothing, but the shell cannot know that.
            machine.host.driver().device.write(at::CONFIG, &[]);
            assert_eq!(machine.host.config(0, len), remembered, "{} round {round}", kind.name);
        }
    }
}
