//! The ring against the mock driver: honest traffic and every lie a ring can tell.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use strato_virtio::mock::{Descriptor, INDIRECT, MockQueue, NEXT, SeededRandom, WRITE, guest_ram};
use strato_virtio::{
    Chain, ChainError, GuestRamHandle, Ring, RingError, RingLayout, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1,
};

const RAM: usize = 1 << 20;

fn pair(size: u16, features: u64) -> (GuestRamHandle, MockQueue, Ring) {
    let ram = guest_ram(RAM);
    let (mut driver, _) = MockQueue::new(&ram, 0x1000, size);
    if features & VIRTIO_F_EVENT_IDX != 0 {
        driver.use_event_idx();
    }
    let mut ring = Ring::new(256).unwrap();
    ring.start(&ram, driver.layout(), 0, features | VIRTIO_F_VERSION_1).unwrap();
    (ram, driver, ring)
}

#[test]
fn chain_with_both_directions_is_read_and_written() {
    let (ram, mut driver, mut ring) = pair(8, 0);
    driver.write(0x8000, b"question");
    let head = driver.offer(&[(0x8000, 4, false), (0x8004, 4, false), (0x9000, 3, true), (0xa000, 5, true)]);
    let mut chain = Chain::new();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 8));
    let mut question = [0; 5];
    chain.read_at(&ram, 2, &mut question).unwrap();
    assert_eq!(&question, b"estio");
    chain.write_at(&ram, 1, b"nswer").unwrap();
    ring.complete(&ram, chain.head(), 6).unwrap();
    assert_eq!(driver.take_used(), head.map(|head| (head, 6)));
    assert_eq!((driver.read(0x9001, 2), driver.read(0xa000, 3)), (b"ns".to_vec(), b"wer".to_vec()));
    assert!(!ring.pop(&ram, &mut chain).unwrap());
}

#[test]
fn accesses_beyond_the_chain_are_refused() {
    let (ram, mut driver, mut ring) = pair(8, 0);
    driver.offer(&[(0x8000, 4, false), (0x9000, 4, true)]);
    let mut chain = Chain::new();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    assert_eq!(chain.read_at(&ram, 0, &mut [0; 5]), Err(ChainError::Range));
    assert_eq!(chain.read_at(&ram, u32::MAX, &mut [0; 1]), Err(ChainError::Range));
    assert_eq!(chain.write_at(&ram, 1, &[0; 4]), Err(ChainError::Range));
}

#[test]
fn indirect_chain_is_walked() {
    let (ram, mut driver, mut ring) = pair(2, 0);
    let buffers: Vec<_> = (0..40).map(|n| (0x8000 + n * 16, 16, n >= 20)).collect();
    driver.offer_indirect(0x20000, &buffers);
    let mut chain = Chain::new();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    assert_eq!((chain.readable().len(), chain.writable().len()), (20, 20));
}

#[test]
fn ring_wraps_many_times_with_and_without_event_idx() {
    // Once around all indices and a little more; Miri sees the ring of four wrap.
    let rounds = if cfg!(miri) { 100 } else { 70_000 };
    for features in [0, VIRTIO_F_EVENT_IDX] {
        let (ram, mut driver, mut ring) = pair(4, features);
        let mut chain = Chain::new();
        let mut notified = 0;
        for round in 0..rounds {
            driver.offer(&[(0x8000, 64, true)]).unwrap();
            assert!(ring.pop(&ram, &mut chain).unwrap());
            ring.complete(&ram, chain.head(), round % 64).unwrap();
            notified += u32::from(ring.wants_notification(&ram).unwrap());
            assert_eq!(driver.take_used().map(|used| used.1), Some(round % 64));
        }
        assert_eq!(notified, rounds);
    }
}

#[test]
fn event_idx_suppresses_notifications_until_the_driver_asks() {
    let (ram, mut driver, mut ring) = pair(8, VIRTIO_F_EVENT_IDX);
    driver.set_used_event(2);
    let mut chain = Chain::new();
    let mut wanted = Vec::new();
    for _ in 0..4 {
        driver.offer(&[(0x8000, 1, true)]).unwrap();
        assert!(ring.pop(&ram, &mut chain).unwrap());
        ring.complete(&ram, chain.head(), 0).unwrap();
        wanted.push(ring.wants_notification(&ram).unwrap());
    }
    assert_eq!(wanted, [false, false, true, false]);
}

#[test]
fn no_interrupt_flag_is_honoured_without_event_idx() {
    let (ram, mut driver, mut ring) = pair(8, 0);
    driver.set_avail_flags(1);
    driver.offer(&[(0x8000, 1, true)]).unwrap();
    let mut chain = Chain::new();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    ring.complete(&ram, chain.head(), 0).unwrap();
    assert!(!ring.wants_notification(&ram).unwrap());
    driver.set_avail_flags(0);
    assert!(!ring.wants_notification(&ram).unwrap(), "nothing new to tell");
    driver.offer(&[(0x8000, 1, true)]).unwrap();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    ring.complete(&ram, chain.head(), 0).unwrap();
    assert!(ring.wants_notification(&ram).unwrap());
}

fn refusal(prepare: impl FnOnce(&mut MockQueue)) -> RingError {
    let (ram, mut driver, mut ring) = pair(8, 0);
    prepare(&mut driver);
    ring.pop(&ram, &mut Chain::new()).unwrap_err()
}

fn refused_chain(prepare: impl FnOnce(&mut MockQueue)) -> ChainError {
    match refusal(prepare) {
        RingError::Chain(error) => error,
        other => panic!("{other}"),
    }
}

fn one(driver: &mut MockQueue, addr: u64, len: u32, flags: u16, next: u16) {
    driver.write_descriptor(0, Descriptor { addr, len, flags, next });
    driver.publish(0);
}

#[test]
fn lying_chains_are_refused_whole() {
    assert_eq!(refused_chain(|d| one(d, 0x8000, 8, NEXT, 0)), ChainError::Broken, "loop");
    assert_eq!(refused_chain(|d| one(d, 0x8000, 8, NEXT, 8)), ChainError::Broken, "next outside table");
    assert_eq!(refused_chain(|d| one(d, RAM as u64 - 4, 8, 0, 0)), ChainError::OutOfMemory, "past the end");
    assert_eq!(refused_chain(|d| one(d, u64::MAX, 2, WRITE, 0)), ChainError::OutOfMemory, "wrapping address");
    assert_eq!(refused_chain(|d| one(d, 0x8000, u32::MAX, 0, 0)), ChainError::OutOfMemory, "huge");
    assert_eq!(refused_chain(|d| d.publish(8)), ChainError::Broken, "head outside table");
    assert_eq!(refused_chain(|d| d.publish(u16::MAX)), ChainError::Broken, "head outside table");
    assert_eq!(refused_chain(|d| one(d, 0x8000, 24, INDIRECT, 0)), ChainError::Broken, "ragged table");
    assert_eq!(refused_chain(|d| one(d, 0x8000, 0, INDIRECT, 0)), ChainError::Broken, "empty table");
    assert_eq!(refused_chain(|d| one(d, RAM as u64, 16, INDIRECT, 0)), ChainError::Broken, "table outside");
}

#[test]
fn nested_indirect_and_wrong_order_are_refused() {
    let nested = |d: &mut MockQueue| {
        d.write_descriptor_at(0x8000, 0, Descriptor { addr: 0x9000, len: 16, flags: INDIRECT, next: 0 });
        one(d, 0x8000, 16, INDIRECT, 0);
    };
    assert_eq!(refused_chain(nested), ChainError::Broken);
    let order = |d: &mut MockQueue| {
        d.offer(&[(0x8000, 8, true), (0x9000, 8, false)]);
    };
    assert_eq!(refused_chain(order), ChainError::Order);
}

#[test]
fn chain_longer_than_any_driver_makes_is_refused() {
    let long = |d: &mut MockQueue| {
        for index in 0..2000 {
            let next = index + 1;
            d.write_descriptor_at(0x10000, index, Descriptor { addr: 0x8000, len: 1, flags: NEXT, next });
        }
        one(d, 0x10000, 16 * 2000, INDIRECT, 0);
    };
    assert_eq!(refused_chain(long), ChainError::TooLong);
}

#[test]
fn zero_length_descriptors_are_harmless() {
    let (ram, mut driver, mut ring) = pair(8, 0);
    driver.offer(&[(0x8000, 0, false), (u64::MAX, 0, true)]);
    let mut chain = Chain::new();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    assert!(chain.readable().is_empty() && chain.writable().is_empty());
}

#[test]
fn available_index_jump_is_a_fault() {
    assert!(matches!(refusal(|d| d.set_avail_idx(9)), RingError::AvailIndexJump));
    assert!(matches!(refusal(|d| d.set_avail_idx(u16::MAX)), RingError::AvailIndexJump));
}

#[test]
fn more_chains_than_descriptors_is_a_fault() {
    let (ram, mut driver, mut ring) = pair(8, 0);
    let mut chain = Chain::new();
    driver.write_descriptor(0, Descriptor { addr: 0x8000, len: 8, flags: WRITE, next: 0 });
    for _ in 0..8 {
        driver.publish(0);
        assert!(ring.pop(&ram, &mut chain).unwrap());
    }
    driver.publish(0);
    assert!(matches!(ring.pop(&ram, &mut chain), Err(RingError::AvailIndexJump)));
}

#[test]
fn impossible_layouts_are_refused() {
    let ram = guest_ram(RAM);
    let good = RingLayout { size: 8, desc_table: 0x1000, avail_ring: 0x2000, used_ring: 0x3000 };
    let bad = [
        RingLayout { size: 0, ..good },
        RingLayout { size: 7, ..good },
        RingLayout { size: 512, ..good },
        RingLayout { desc_table: 0x1008, ..good },
        RingLayout { avail_ring: 0x2001, ..good },
        RingLayout { used_ring: 0x3002, ..good },
        RingLayout { desc_table: 0, ..good },
        RingLayout { desc_table: RAM as u64 - 16, ..good },
        RingLayout { avail_ring: u64::MAX - 1, ..good },
        RingLayout { used_ring: RAM as u64 - 64, ..good },
    ];
    for layout in bad {
        let mut ring = Ring::new(256).unwrap();
        assert!(matches!(ring.start(&ram, layout, 0, 0), Err(RingError::Layout(..))), "{layout:?}");
        assert!(!ring.running());
        assert!(matches!(ring.pop(&ram, &mut Chain::new()), Err(RingError::NotRunning)));
    }
    assert!(!Ring::new(256).unwrap().start(&ram, good, 0, 0).unwrap());
}

#[test]
fn stopped_ring_resumes_where_it_was_and_a_new_driver_is_told_apart() {
    let (ram, mut driver, mut ring) = pair(8, 0);
    let mut chain = Chain::new();
    for _ in 0..3 {
        driver.offer(&[(0x8000, 8, true)]).unwrap();
    }
    assert!(ring.pop(&ram, &mut chain).unwrap());
    ring.complete(&ram, chain.head(), 0).unwrap();
    assert_eq!(ring.stop(), 1);
    assert!(matches!(ring.complete(&ram, 0, 0), Err(RingError::NotRunning)));
    assert!(ring.start(&ram, driver.layout(), 1, 0).unwrap());
    assert!(ring.pop(&ram, &mut chain).unwrap());
    ring.unpop();
    assert_eq!(ring.stop(), 1);
    assert!(!ring.start(&ram, driver.layout(), 0, 0).unwrap());
}

#[test]
fn completing_what_was_not_popped_is_refused() {
    let (ram, _, mut ring) = pair(8, 0);
    assert!(matches!(ring.complete(&ram, 0, 0), Err(RingError::NotInFlight)));
}

#[test]
fn random_rings_never_panic() {
    // Miri takes a second for what takes the processor a millisecond.
    for seed in 0..if cfg!(miri) { 20 } else { 2_000 } {
        let mut random = SeededRandom::new(seed);
        let (ram, mut driver, mut ring) = pair(16, if seed & 1 == 0 { 0 } else { VIRTIO_F_EVENT_IDX });
        for index in 0..16 {
            let near_end = RAM as u64 - random.below(64);
            let addr =
                [random.below(RAM as u64), near_end, random.next_u64(), 0x1000][random.below(4) as usize];
            let len = [random.below(4096), random.next_u64(), 16, 0][random.below(4) as usize] as u32;
            let flags = random.below(8) as u16;
            driver.write_descriptor(index, Descriptor { addr, len, flags, next: random.below(18) as u16 });
        }
        let mut chain = Chain::new();
        for _ in 0..24 {
            driver.publish(random.below(20) as u16);
            if random.below(50) == 0 {
                driver.set_avail_idx(random.next_u64() as u16);
            }
            let Ok(true) = ring.pop(&ram, &mut chain) else { break };
            let total: u64 = chain.readable().iter().map(|span| u64::from(span.len)).sum();
            assert_eq!(total, u64::from(chain.readable_len()));
            let mut copy = vec![0; chain.readable_len().min(4096) as usize];
            chain.read_at(&ram, 0, &mut copy).unwrap();
            if random.below(2) == 0 && ring.complete(&ram, chain.head(), 1).is_err() {
                break;
            }
            let _ = ring.wants_notification(&ram);
        }
    }
}
