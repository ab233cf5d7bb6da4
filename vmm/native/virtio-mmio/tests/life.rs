//! The life of a device beside its driver: memory, pauses, resets, saved state, and its end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strato_virtio::mock::{MockQueue, guest_ram};
use strato_virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};
use strato_virtio_mmio::MmioError;
use strato_virtio_mmio::mock::{ACKNOWLEDGED, DRIVING, MockDriver, NEEDS_RESET, RUNNING, SETTLED, at};
use support::{Bench, FEATURE, bench};
use vm_memory::{Bytes, GuestAddress};

const CONFIG: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

fn running() -> (Bench, Vec<MockQueue>) {
    let b = bench();
    let queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    (b, queues)
}

fn memory(b: &Bench) -> Vec<u8> {
    let mut all = vec![0; 1 << 20];
    b.ram.read_slice(&mut all, GuestAddress(0)).unwrap();
    all
}

#[test]
fn paused_device_touches_nothing_and_loses_no_kick() {
    let (b, mut queues) = running();
    for by_register in [false, true] {
        b.device.pause();
        let before = memory(&b);
        queues[0].offer(&[(0x8_0000, 16, true)]).unwrap();
        let offered = memory(&b);
        if by_register {
            b.driver.write(at::QUEUE_NOTIFY, 0);
        } else {
            b.driver.kick(0);
        }
        // A command goes through the device's thread behind the kick.
        b.driver.config(0, 1);
        b.device.write(at::CONFIG, &[1]);
        assert_ne!(offered, before);
        assert!(memory(&b) == offered, "the paused device went on");
        b.device.unpause();
        b.driver.wait("answer", || queues[0].take_used());
    }
}

#[test]
fn pause_at_any_moment_of_a_busy_device_is_one() {
    let (b, mut queues) = running();
    let done = AtomicBool::new(false);
    let mut queue = queues.remove(0);
    std::thread::scope(|scope| {
        let driver = b.driver.clone();
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                while queue.offer(&[(0x8_0000, 16, true)]).is_some() {
                    driver.kick(0);
                }
                while queue.take_used().is_some() {}
            }
        });
        for _ in 0..300 {
            b.device.pause();
            let served = b.handle.served.load(Ordering::Relaxed);
            for _ in 0..50 {
                std::thread::yield_now();
            }
            assert_eq!(b.handle.served.load(Ordering::Relaxed), served);
            b.device.unpause();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_reset_of_a_busy_device_leaves_nothing_in_flight() {
    let b = bench();
    for _ in 0..300 {
        let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
        while queues[0].offer(&[(0x8_0000, 16, true)]).is_some() {}
        b.driver.kick(0);
        b.driver.set_status(0);
        let before = memory(&b);
        b.driver.kick(0);
        b.device.pause();
        b.device.unpause();
        assert!(memory(&b) == before);
        assert_eq!((b.driver.status(), b.driver.read(at::INTERRUPT_STATUS)), (0, 0));
    }
}

#[test]
fn device_without_memory_cannot_run_and_a_reset_heals() {
    let b = bench();
    b.device.release();
    assert!(b.driver.settle(VIRTIO_F_VERSION_1));
    let queues = b.driver.rings(&b.ram, 0x1000, 8, 0);
    b.driver.run(&queues);
    assert_eq!(b.driver.status(), RUNNING | NEEDS_RESET);
    assert_eq!(b.driver.interrupted(PATIENCE), Some(CONFIG));
    b.device.set_memory(Arc::clone(&b.ram)).unwrap();
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    b.prove_service(0, &mut queues[0]);
}

#[test]
fn running_device_goes_on_in_other_memory_if_its_queues_lie_in_it() {
    let (b, mut queues) = running();
    b.prove_service(0, &mut queues[0]);
    let other = guest_ram(1 << 20);
    other.write_slice(&memory(&b), GuestAddress(0)).unwrap();
    b.device.set_memory(Arc::clone(&other)).unwrap();
    queues[0].offer(&[(0x8_0000, 16, true)]).unwrap();
    other.write_slice(&memory(&b), GuestAddress(0)).unwrap();
    b.driver.kick(0);
    b.driver.wait("answer", || {
        let used: u16 = other.read_obj(GuestAddress(queues[0].layout().used_ring + 2)).unwrap();
        (used == 2).then_some(())
    });
    let small = guest_ram(0x1000);
    assert!(matches!(b.device.set_memory(small), Err(MmioError::Ring(_))));
    assert_eq!(b.driver.status(), RUNNING | NEEDS_RESET);
    assert_eq!(b.driver.interrupted(PATIENCE).unwrap() & CONFIG, CONFIG);
    b.device.set_memory(Arc::clone(&b.ram)).unwrap();
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    b.prove_service(0, &mut queues[0]);
}

#[test]
fn driver_that_breaks_the_protocol_hears_of_it_and_nobody_else_does() {
    let (b, mut queues) = running();
    queues[0].publish(9999);
    b.driver.kick(0);
    let status =
        b.driver.wait("fault", || Some(b.driver.status()).filter(|status| status & NEEDS_RESET != 0));
    assert_eq!(status, RUNNING | NEEDS_RESET);
    b.heard.wait_for("queue 0");
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS) & !CONFIG, 0);
    // The other queue stands still too.
    queues[1].offer(&[(0x8_0000, 16, true)]).unwrap();
    b.driver.kick(1);
    b.device.pause();
    b.device.unpause();
    assert_eq!(queues[1].take_used(), None);
    // Writes are refused but for a reset; FAILED may be said.
    b.driver.set_status(RUNNING | NEEDS_RESET | 128);
    assert_eq!(b.driver.status(), RUNNING | NEEDS_RESET | 128);
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    b.prove_service(1, &mut queues[1]);
}

/// The device's thread has ended: nothing waits, everything says so, and no reset helps.
fn check_lost(b: &Bench) {
    for _ in 0..2 {
        assert_eq!(b.driver.status() & NEEDS_RESET, NEEDS_RESET);
        let mut data = [0; 4];
        assert_eq!(b.refusals(|| b.device.read(at::CONFIG, &mut data)), 1);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(b.refusals(|| b.device.write(at::CONFIG, &[1])), 1);
        b.driver.kick(0);
        b.driver.write(at::QUEUE_NOTIFY, 0);
        b.device.pause();
        b.device.unpause();
        assert!(matches!(b.device.save(), Err(MmioError::Lost(_))));
        assert!(matches!(b.device.set_memory(Arc::clone(&b.ram)), Err(MmioError::Lost(_))));
        assert!(!b.driver.settle(VIRTIO_F_VERSION_1));
        b.device.release();
    }
    assert_eq!(b.driver.read(at::MAGIC).to_le_bytes(), *b"virt");
}

#[test]
fn device_whose_thread_ends_at_work_is_lost_and_says_so() {
    let (b, _queues) = running();
    b.handle.panic_at_kick.store(true, Ordering::Relaxed);
    b.driver.kick(0);
    b.heard.wait_for("Panicked");
    assert_eq!(b.driver.status(), RUNNING | NEEDS_RESET);
    assert_eq!(b.driver.interrupted(PATIENCE), Some(CONFIG));
    check_lost(&b);
}

#[test]
fn vcpu_that_waits_for_a_device_whose_thread_ends_goes_on() {
    let (b, _queues) = running();
    b.handle.panic_at_reset.store(true, Ordering::Relaxed);
    b.driver.set_status(0);
    assert_eq!(b.driver.status(), NEEDS_RESET);
    b.heard.wait_for("Panicked");
    check_lost(&b);
}

/// Another device that takes up `record` in a copy of the memory.
fn moved(b: &Bench, record: &[u8]) -> Result<Bench, MmioError> {
    let other = bench();
    other.ram.write_slice(&memory(b), GuestAddress(0)).unwrap();
    other.device.pause();
    other.device.restore(record).map(|()| other)
}

/// What a driver does next.
type Step = fn(&MockDriver);

#[test]
fn device_is_saved_and_restored_at_every_step_of_its_driver() {
    let steps: [(u32, Step); 6] = [
        (0, |_| ()),
        (ACKNOWLEDGED, |driver| driver.set_status(ACKNOWLEDGED)),
        (DRIVING, |driver| driver.set_status(DRIVING)),
        (DRIVING, |driver| {
            driver.write(at::DRIVER_FEATURES_SEL, 1);
            driver.write(at::DRIVER_FEATURES, 1);
            driver.write(at::DRIVER_FEATURES_SEL, 0);
            driver.write(at::DRIVER_FEATURES, FEATURE as u32);
        }),
        (SETTLED, |driver| driver.set_status(SETTLED)),
        (SETTLED | 128, |driver| driver.set_status(SETTLED | 128)),
    ];
    for last in 0..steps.len() {
        let b = bench();
        steps[..=last].iter().for_each(|step| step.1(&b.driver));
        let record = b.device.save().unwrap();
        let other = moved(&b, &record).unwrap();
        assert_eq!(other.driver.status(), steps[last].0);
        assert_eq!(other.device.save().unwrap(), record);
        if last < 4 {
            steps[last + 1..5].iter().for_each(|step| step.1(&other.driver));
            assert_eq!(other.driver.status(), SETTLED, "after {last}");
        }
    }
}

#[test]
fn running_device_is_moved_and_goes_on_where_it_was() {
    let b = bench();
    let features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
    let mut queues = b.driver.begin(&b.ram, features);
    b.prove_service(0, &mut queues[0]);
    b.driver.write(at::QUEUE_SEL, 1);
    b.device.pause();
    // That of the answer may have come after it was found.
    b.driver.interrupted(Duration::ZERO);
    // A kick that the old device has not heard, and an interrupt that the driver has not.
    queues[0].offer(&[(0x8_0000, 16, true)]).unwrap();
    b.driver.kick(0);
    b.handle.reconfigure(5, 99);
    b.heard.wait_for("configuration");
    let record = b.device.save().unwrap();
    let other = moved(&b, &record).unwrap();
    assert_eq!(other.driver.status(), RUNNING);
    assert_eq!(other.driver.read(at::QUEUE_NUM_MAX), 8, "the queue that was selected");
    assert_eq!(other.driver.interrupted(PATIENCE), Some(CONFIG));
    assert_eq!(other.driver.config(5, 1), [99]);
    assert_eq!(other.driver.read(at::CONFIG_GENERATION), b.driver.read(at::CONFIG_GENERATION));
    let used = || other.ram.read_obj::<u16>(GuestAddress(queues[0].layout().used_ring + 2)).unwrap();
    assert_eq!(used(), 1, "it went on while it was paused");
    other.device.unpause();
    other.driver.wait("answer", || (used() == 2).then_some(()));
    assert_eq!(b.driver.config(5, 1), [99]);
}

#[test]
fn device_that_needs_a_reset_still_does_after_it_was_moved() {
    let (b, mut queues) = running();
    queues[0].publish(9999);
    b.driver.kick(0);
    b.driver.wait("fault", || Some(()).filter(|()| b.driver.status() & NEEDS_RESET != 0));
    let other = moved(&b, &b.device.save().unwrap()).unwrap();
    other.device.unpause();
    assert_eq!(other.driver.status(), RUNNING | NEEDS_RESET);
    other.driver.kick(0);
    let mut queues = other.driver.begin(&other.ram, VIRTIO_F_VERSION_1);
    other.prove_service(0, &mut queues[0]);
}

#[test]
fn device_that_cannot_be_saved_says_why() {
    let (b, mut queues) = running();
    b.handle.unsaveable.store(true, Ordering::Relaxed);
    assert!(matches!(b.device.save(), Err(MmioError::Obstacle(_))));
    b.prove_service(0, &mut queues[0]);
}

#[test]
fn records_that_no_device_has_written_are_refused() {
    let (b, mut queues) = running();
    b.prove_service(0, &mut queues[0]);
    b.device.pause();
    let record = b.device.save().unwrap();
    let other = bench();
    other.ram.write_slice(&memory(&b), GuestAddress(0)).unwrap();
    for len in 0..record.len() {
        assert!(matches!(other.device.restore(&record[..len]), Err(MmioError::Record(_))), "{len}");
        assert_eq!(other.driver.status(), 0);
    }
    let mut refused = 0;
    for position in 0..record.len() {
        for change in [1, 0x80, 0xff] {
            let mut bad = record.clone();
            bad[position] ^= change;
            match other.device.restore(&bad) {
                Ok(()) => assert_eq!(other.driver.status() & 3, 3, "{position}"),
                Err(_) => {
                    refused += 1;
                    assert_eq!(other.driver.status(), 0, "{position}");
                    assert_eq!(other.driver.read(at::INTERRUPT_STATUS), 0);
                }
            }
        }
    }
    // Not a few of the bytes are addresses within memory, positions and contents.
    assert!(refused > record.len(), "{refused} of {}", 3 * record.len());
    other.device.restore(&record).unwrap();
    assert_eq!(other.driver.status(), RUNNING);
}

#[test]
fn the_two_halves_of_a_record_must_belong_together() {
    let (b, _queues) = running();
    b.device.pause();
    let idle = bench();
    let parts = |record: &[u8]| {
        let len = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap()) as usize;
        let transport = len(12);
        (record[12..16 + transport].to_vec(), record[16 + transport..].to_vec())
    };
    let (running, settled) = (b.device.save().unwrap(), idle.device.save().unwrap());
    let (running, settled) = (parts(&running), parts(&settled));
    for body in [[running.0.clone(), settled.1.clone()], [settled.0, running.1]] {
        let body = body.concat();
        let mut record = b"MMIO".to_vec();
        record.extend(1u32.to_le_bytes());
        record.extend((body.len() as u32).to_le_bytes());
        record.extend(body);
        assert!(matches!(bench().device.restore(&record), Err(MmioError::Record(_))));
    }
}

#[test]
fn moved_device_is_refused_where_its_queues_do_not_lie_in_memory() {
    let (b, _queues) = running();
    b.device.pause();
    let record = b.device.save().unwrap();
    let other = bench();
    other.device.set_memory(guest_ram(0x1000)).unwrap();
    assert!(matches!(other.device.restore(&record), Err(MmioError::Ring(_))));
    assert_eq!((other.driver.status(), other.driver.read(at::INTERRUPT_STATUS)), (0, 0));
}
