//! Interrupts on an edge: nothing is lost, whoever is faster.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use strato_virtio::VIRTIO_F_VERSION_1;
use strato_virtio::mock::MockQueue;
use strato_virtio_mmio::mock::{RUNNING, at};
use support::{Bench, bench};

const USED: u32 = 1;
const CONFIG: u32 = 2;

/// Longer than any wake-up takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Edges of a test of races.
const ROUNDS: u32 = 50_000;
/// What is not there is not waited for.
const NOW: Duration = Duration::ZERO;

/// An edge, without a look at the registers.
fn edge(b: &Bench) -> bool {
    b.device.interrupt().read().is_ok()
}

fn running() -> (Bench, Vec<MockQueue>) {
    let b = bench();
    let queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    (b, queues)
}

/// Has the device use a buffer, and waits until it has.
fn use_buffer(b: &Bench, queue: u16, ring: &mut MockQueue) {
    let before = b.handle.served.load(Ordering::Relaxed);
    ring.offer(&[(0x8_0000, 16, true)]).unwrap();
    b.driver.kick(queue);
    let deadline = Instant::now() + PATIENCE;
    while b.handle.served.load(Ordering::Relaxed) == before {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // Answered after the kick has been: the interrupt has been raised by now.
    b.device.pause();
    b.device.unpause();
}

#[test]
fn each_kind_of_event_has_its_bit_and_an_acknowledgement_clears_only_what_it_names() {
    let (b, mut queues) = running();
    use_buffer(&b, 0, &mut queues[0]);
    b.handle.reconfigure(0, 9);
    b.heard.wait_for("configuration");
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), USED | CONFIG);
    b.driver.write(at::INTERRUPT_ACK, 0);
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), USED | CONFIG);
    b.driver.write(at::INTERRUPT_ACK, CONFIG | 0xffff_fff0);
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), USED);
    b.driver.write(at::INTERRUPT_ACK, USED);
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), 0);
    assert_eq!(b.device.refusals(), 0);
}

#[test]
fn an_event_between_reading_and_acknowledging_stays() {
    let (b, mut queues) = running();
    use_buffer(&b, 0, &mut queues[0]);
    assert!(edge(&b));
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), USED);
    // The driver handles what it found, and before it says so there is more.
    use_buffer(&b, 1, &mut queues[1]);
    b.driver.write(at::INTERRUPT_ACK, USED);
    // There is an edge for it, and whoever follows it finds it.
    assert!(edge(&b));
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), USED);
    b.driver.write(at::INTERRUPT_ACK, USED);
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), 0);
}

#[test]
fn events_that_the_driver_has_seen_are_acknowledged_together() {
    let (b, mut queues) = running();
    for _ in 0..3 {
        use_buffer(&b, 0, &mut queues[0]);
    }
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), USED);
    b.driver.write(at::INTERRUPT_ACK, USED);
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), 0);
}

#[test]
fn what_happens_before_driver_ok_is_told_then() {
    let b = bench();
    b.handle.reconfigure(0, 9);
    b.heard.wait_for("configuration");
    assert_eq!(b.driver.interrupted(NOW), None);
    assert!(b.driver.settle(VIRTIO_F_VERSION_1));
    let queues = b.driver.rings(&b.ram, 0x1000, 8, 0);
    // Settling began with a reset, which forgot that; this is new.
    b.handle.reconfigure(0, 10);
    b.heard.wait_for("configuration");
    b.device.pause();
    assert_eq!(b.driver.interrupted(NOW), None);
    b.driver.run(&queues);
    assert_eq!(b.driver.interrupted(PATIENCE), Some(CONFIG));
    b.device.unpause();
}

#[test]
fn a_reset_takes_the_interrupt_back() {
    let (b, mut queues) = running();
    use_buffer(&b, 0, &mut queues[0]);
    b.driver.set_status(0);
    assert_eq!(b.driver.read(at::INTERRUPT_STATUS), 0);
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    assert_eq!(b.driver.status(), RUNNING);
    b.prove_service(0, &mut queues[0]);
}

/// What a driver does about an interrupt.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// As Linux: then a late event has an interrupt of its own.
    AcknowledgeFirst,
    /// As the specification says (4.2.3.4): a late event must not be acknowledged with the others.
    HandleFirst,
}

/// A driver that goes on only when it is interrupted: its one buffer is used at once, and if that is not told it
/// stands still. (With more of them one event would stand in for another.)
fn ping_pong(order: Order) {
    let (b, mut queues) = running();
    let queue = &mut queues[0];
    queue.offer(&[(0x8_0000, 16, true)]).unwrap();
    b.driver.kick(0);
    for round in 0..ROUNDS {
        let status = wait_for_edge(&b, order, round);
        if status & USED != 0 && queue.take_used().is_some() {
            queue.offer(&[(0x8_0000, 16, true)]).unwrap();
            b.driver.kick(0);
        }
        if matches!(order, Order::HandleFirst) {
            b.driver.write(at::INTERRUPT_ACK, status);
        }
    }
}

/// The next edge, and what its handler reads.
fn wait_for_edge(b: &Bench, order: Order, round: u32) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    while !edge(b) {
        assert!(Instant::now() < deadline, "{order:?}: stands still in round {round}");
        std::thread::yield_now();
    }
    let status = b.driver.read(at::INTERRUPT_STATUS);
    if matches!(order, Order::AcknowledgeFirst) {
        b.driver.write(at::INTERRUPT_ACK, status);
    }
    status
}

#[test]
fn no_buffer_is_lost_by_a_driver_that_acknowledges_first() {
    ping_pong(Order::AcknowledgeFirst);
}

#[test]
fn no_buffer_is_lost_by_a_driver_that_handles_first() {
    ping_pong(Order::HandleFirst);
}

/// As [`ping_pong`], with a host that changes the configuration when the driver has seen the change before.
fn changes(order: Order) {
    let (b, _queues) = running();
    let seen = AtomicU8::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (host, seen, done) = (&b.handle, &seen, &done);
        scope.spawn(move || {
            let mut value = 0u8;
            while !done.load(Ordering::Acquire) {
                value = value.wrapping_add(1);
                host.reconfigure(0, value);
                while seen.load(Ordering::Acquire) != value && !done.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
        });
        let stop = Stop(done);
        for round in 0..ROUNDS {
            let status = wait_for_edge(&b, order, round);
            if status & CONFIG != 0 {
                seen.store(b.driver.config(0, 1)[0], Ordering::Release);
            }
            if matches!(order, Order::HandleFirst) {
                b.driver.write(at::INTERRUPT_ACK, status);
            }
        }
        drop(stop);
    });
}

/// Ends the other thread, whatever happens in this one.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn no_change_is_lost_by_a_driver_that_acknowledges_first() {
    changes(Order::AcknowledgeFirst);
}

#[test]
fn no_change_is_lost_by_a_driver_that_handles_first() {
    changes(Order::HandleFirst);
}
