//! Limits: throttled requests wait in their ring, and the device goes on with everything else.

use super::gate::gated;
use super::*;
use crate::bucket::BucketConfig;

fn operations(rate: u64, burst: u64) -> Limits {
    Limits { operations: Some(BucketConfig { rate, burst }), ..Limits::default() }
}

fn limited(engine: EngineChoice, limits: Limits) -> Machine {
    let file = memory_file(SECTORS);
    let config = BlockConfig { limits, ..config(&file, engine) };
    start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1 | F_FLUSH)
}

#[test]
fn requests_above_the_limit_wait_and_none_is_lost() {
    for engine in ENGINES {
        let mut m = limited(engine, operations(200, 5));
        let begun = Instant::now();
        for place in 0..15 {
            m.offer(0, place, IN, place, &[(data(place), 512, true)]);
        }
        m.host.kick(0);
        for _ in 0..15 {
            m.wait(0);
        }
        // Five at once, ten at 200 per second.
        assert!(begun.elapsed() >= Duration::from_millis(50));
        assert!(m.metric("throttled") >= 1);
        for place in 0..15 {
            assert_eq!(m.drivers[0].read(data(place), 1), [place as u8 + 1]);
        }
    }
}

#[test]
fn reads_and_writes_share_the_bandwidth() {
    let bandwidth = Some(BucketConfig { rate: 102_400, burst: 4096 });
    let mut m = limited(EngineChoice::Auto, Limits { bandwidth, ..Limits::default() });
    let begun = Instant::now();
    for _ in 0..4 {
        m.ask(IN, 0, &[(DATA, 2048, true)]);
        m.ask(OUT, 8, &[(DATA, 2048, false)]);
    }
    // 16 KiB, 4 of them at once, at 100 KiB per second.
    assert!(begun.elapsed() >= Duration::from_millis(120), "{:?}", begun.elapsed());
}

#[test]
fn throttled_device_answers_commands_and_a_new_limit_frees_it_at_once() {
    let (mut m, gate) = gated(1, operations(1, 1), VIRTIO_F_VERSION_1 | F_FLUSH);
    for place in 0..10 {
        m.offer(0, place, FLUSH, 0, &[]);
    }
    m.host.kick(0);
    assert_eq!(gate.waiting(), 1);
    // A pause does not wait for the limit: what is throttled stays in the ring.
    m.host.pause();
    m.host.unpause();
    assert_eq!((gate.waiting(), m.drivers[0].used_idx()), (0, 1));
    assert_eq!(m.host.stop_ring(0), Some(1));
    m.start_ring(0, 1);
    assert_eq!(gate.waiting(), 0);
    m.control.set_limits(Limits::default()).unwrap();
    m.host.turn(PATIENCE_MS).unwrap();
    assert_eq!(gate.waiting(), 9);
}

#[test]
fn reset_does_not_refill_the_bucket() {
    let (mut m, gate) = gated(1, operations(1, 1), VIRTIO_F_VERSION_1 | F_FLUSH);
    m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    assert_eq!(gate.waiting(), 1);
    m.host.reset();
    m.start_driver(VIRTIO_F_VERSION_1 | F_FLUSH);
    m.offer(0, 0, FLUSH, 0, &[]);
    m.host.kick(0);
    assert_eq!(gate.waiting(), 0);
    m.host.reset();
    while m.host.turn(0).unwrap() {}
    assert_eq!(gate.waiting(), 0);
}

#[test]
fn held_back_queue_goes_first_when_the_limit_allows_it() {
    let (mut m, gate) = gated(2, operations(1, 1), VIRTIO_F_VERSION_1 | F_FLUSH | (1 << 12));
    for queue in [0, 1] {
        m.offer(queue, 0, FLUSH, 0, &[]);
        m.offer(queue, 0, FLUSH, 0, &[]);
    }
    m.host.kick(0);
    m.host.kick(1);
    assert_eq!(gate.waiting(), 1);
    m.control.set_limits(operations(100, 100)).unwrap();
    m.wait_for_jobs(&gate, 4);
}

impl Machine {
    fn wait_for_jobs(&mut self, gate: &super::gate::GateKeeper, count: usize) {
        while gate.waiting() < count {
            assert!(self.host.turn(PATIENCE_MS).unwrap());
        }
    }
}
