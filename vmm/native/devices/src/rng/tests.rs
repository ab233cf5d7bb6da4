//! The entropy device against the mock driver.
#![allow(unsafe_code, reason = "tests")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use strato_virtio::mock::{Descriptor, MockNotifier, MockQueue, NEXT, WRITE, guest_ram};
use strato_virtio::{DeviceHost, Notification, RingStart, VIRTIO_F_VERSION_1, Worker};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::bucket::BucketConfig;

struct Machine {
    host: DeviceHost,
    driver: MockQueue,
    notifier: MockNotifier,
    metrics: std::sync::Arc<RngMetrics>,
}

fn machine(rng: Rng) -> Machine {
    let metrics = rng.metrics();
    let ram = guest_ram(1 << 20);
    let (driver, _) = MockQueue::new(&ram, 0x1000, 16);
    let notifier = MockNotifier::default();
    let mut host = DeviceHost::new(Box::new(rng), Box::new(notifier.clone())).unwrap();
    host.set_memory(ram).unwrap();
    assert!(host.set_features(VIRTIO_F_VERSION_1));
    Machine { host, driver, notifier, metrics }
}

fn start(machine: &mut Machine) {
    let layout = machine.driver.layout();
    machine.host.start_ring(RingStart { queue: 0, layout, next_avail: 0, kick: None }).unwrap();
}

fn default_machine() -> Machine {
    machine(Rng::new(RngConfig::default()).unwrap())
}

#[test]
fn request_is_filled_and_notified() {
    let mut m = default_machine();
    start(&mut m);
    m.driver.offer(&[(0x8000, 100, true), (0x9000, 28, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(128));
    assert_ne!(m.driver.read(0x8000, 100), vec![0; 100]);
    assert_ne!(m.driver.read(0x9000, 28), vec![0; 28]);
    assert_eq!(m.notifier.take(), [Notification::Queue(0)]);
}

#[test]
fn ring_filled_before_the_start_is_served_without_a_kick() {
    let mut m = default_machine();
    m.driver.offer(&[(0x8000, 8, true)]).unwrap();
    start(&mut m);
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(8));
}

#[test]
fn request_is_capped() {
    let mut m = default_machine();
    start(&mut m);
    m.driver.offer(&[(0x10000, 0x80000, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(64 * 1024));
    assert_eq!(m.driver.read(0x20000, 64), vec![0; 64]);
}

#[test]
fn read_only_and_empty_requests_come_back_empty() {
    let mut m = default_machine();
    start(&mut m);
    m.driver.offer(&[(0x8000, 8, false)]).unwrap();
    m.driver.offer(&[(0x8000, 0, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(0));
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(0));
    assert!(m.host.fault().is_none());
}

#[test]
fn broken_chain_asks_for_a_reset_once_and_a_reset_heals() {
    let mut m = default_machine();
    start(&mut m);
    m.driver.write_descriptor(0, Descriptor { addr: 0x8000, len: 8, flags: WRITE | NEXT, next: 0 });
    m.driver.publish(0);
    m.host.kick(0);
    m.host.kick(0);
    assert!(m.host.fault().is_some());
    assert_eq!(m.notifier.take(), [Notification::NeedsReset]);
    m.host.reset();
    assert!(m.host.set_features(VIRTIO_F_VERSION_1));
    let ram = m.driver.ram().clone();
    m.driver = MockQueue::new(&ram, 0x1000, 16).0;
    start(&mut m);
    m.driver.offer(&[(0x8000, 8, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(8));
}

#[test]
fn rate_limit_delays_and_then_serves() {
    let limit = BucketConfig { rate: 100_000, burst: 1000 };
    let mut m = machine(Rng::new(RngConfig { limit }).unwrap());
    start(&mut m);
    for _ in 0..3 {
        m.driver.offer(&[(0x8000, 1000, true)]).unwrap();
    }
    let begin = Instant::now();
    m.host.kick(0);
    let mut served = 0;
    while served < 3 && begin.elapsed() < Duration::from_secs(10) {
        served += std::iter::from_fn(|| m.driver.take_used()).count();
        if served < 3 {
            m.host.turn(1000).unwrap();
        }
    }
    assert_eq!(served, 3);
    assert!(begin.elapsed() >= Duration::from_millis(19), "{:?}", begin.elapsed());
    assert!(m.metrics.throttled.load(Ordering::Relaxed) >= 2);
    assert_eq!(m.metrics.bytes.load(Ordering::Relaxed), 3000);
}

#[test]
fn reset_while_throttled_leaves_nothing_behind() {
    let limit = BucketConfig { rate: 1, burst: 1000 };
    let mut m = machine(Rng::new(RngConfig { limit }).unwrap());
    start(&mut m);
    m.driver.offer(&[(0x8000, 1000, true)]).unwrap();
    m.driver.offer(&[(0x8000, 1000, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.host.stop_ring(0), Some(1));
    m.host.reset();
    assert!(!m.host.turn(0).unwrap());
    assert_eq!(m.driver.used_idx(), 1);
}

#[test]
fn failing_source_gives_empty_answers() {
    struct Dry;
    impl Entropy for Dry {
        fn fill(&mut self, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
    let mut m = machine(Rng::with_source(RngConfig::default(), Box::new(Dry)).unwrap());
    start(&mut m);
    m.driver.offer(&[(0x8000, 8, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(0));
    assert_eq!(m.metrics.failures.load(Ordering::Relaxed), 1);
}

#[test]
fn saved_state_is_restored_and_bad_state_refused() {
    let mut m = default_machine();
    start(&mut m);
    m.driver.offer(&[(0x8000, 8, true)]).unwrap();
    m.host.kick(0);
    let saved = m.host.save();
    let mut n = default_machine();
    let rings = n.host.restore(&saved).unwrap();
    let (layout, position) = rings[0].unwrap();
    assert_eq!((layout, position), (m.driver.layout(), 1));
    assert_eq!(n.host.features(), VIRTIO_F_VERSION_1);
    for len in 0..saved.len() {
        assert!(n.host.restore(&saved[..len]).is_err());
    }
    for position in 0..saved.len() {
        let mut bad = saved.clone();
        bad[position] ^= 0x5a;
        // Must not panic; what is accepted is checked again when the rings start.
        let _ = n.host.restore(&bad);
    }
}

#[test]
fn paused_device_touches_nothing_and_catches_up() {
    let mut m = default_machine();
    start(&mut m);
    m.host.pause();
    m.driver.offer(&[(0x8000, 8, true)]).unwrap();
    m.host.kick(0);
    assert_eq!(m.driver.take_used(), None);
    m.host.unpause();
    assert_eq!(m.driver.take_used().map(|used| used.1), Some(8));
}

#[test]
fn worker_serves_kicks_and_survives_a_dead_kick_descriptor() {
    let m = default_machine();
    let layout = m.driver.layout();
    let (mut driver, notifier) = (m.driver, m.notifier);
    let worker = Worker::start("rng", m.host).unwrap();
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let shared = owned(&kick);
    let start = RingStart { queue: 0, layout, next_avail: 0, kick: Some(shared) };
    worker.call(|host| host.start_ring(start)).unwrap().unwrap();
    driver.offer(&[(0x8000, 8, true)]).unwrap();
    kick.write(1).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while driver.used_idx() == 0 && Instant::now() < deadline {
        // The answer comes after the kick was handled or before it: ask again.
        worker.call(|_| ()).unwrap();
    }
    assert_eq!(driver.take_used().map(|used| used.1), Some(8));
    assert_eq!(notifier.take(), [Notification::Queue(0)]);
    let not_an_eventfd: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let start = RingStart { queue: 0, layout, next_avail: 1, kick: Some(not_an_eventfd) };
    assert!(worker.call(|host| host.start_ring(start)).unwrap().is_err(), "epoll refuses /dev/null");
}

fn owned(event: &EventFd) -> OwnedFd {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: `event` is open for the duration of the call, which duplicates it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }.as_fd().try_clone_to_owned().unwrap()
}
