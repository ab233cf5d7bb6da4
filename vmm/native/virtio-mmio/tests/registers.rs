//! The registers as drivers use them, and as no driver should.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use strato_virtio::{RING_FEATURES, RingLayout, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};
use strato_virtio_mmio::mock::{ACKNOWLEDGED, DRIVING, NEEDS_RESET, RUNNING, SETTLED, at};
use support::{CONFIG_LEN, FEATURE, bench};

#[test]
fn device_introduces_itself() {
    let b = bench();
    assert_eq!(b.driver.read(at::MAGIC).to_le_bytes(), *b"virt");
    assert_eq!((b.driver.read(at::VERSION), b.driver.read(at::DEVICE_ID)), (2, 42));
    assert_eq!(b.driver.offered(), RING_FEATURES | FEATURE);
    b.driver.write(at::DEVICE_FEATURES_SEL, 2);
    assert_eq!(b.driver.read(at::DEVICE_FEATURES), 0);
    assert_eq!(b.device.refusals(), 0);
}

#[test]
fn driver_in_order_is_served_with_and_without_event_index() {
    for features in [VIRTIO_F_VERSION_1, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | FEATURE] {
        let b = bench();
        let mut queues = b.driver.begin(&b.ram, features);
        assert_eq!(b.driver.status(), RUNNING);
        assert_eq!(queues[1].layout().size, 8);
        for (queue, ring) in (0..).zip(&mut queues) {
            for _ in 0..100 {
                b.prove_service(queue, ring);
            }
        }
        assert_eq!(b.device.refusals(), 0);
        // As Linux takes its queues down.
        b.driver.set_status(0);
        for queue in 0..2 {
            b.driver.write(at::QUEUE_SEL, queue);
            b.driver.write(at::QUEUE_READY, 0);
            assert_eq!(b.driver.read(at::QUEUE_READY), 0);
        }
        assert_eq!((b.driver.status(), b.device.refusals()), (0, 0));
        let mut queues = b.driver.begin(&b.ram, features);
        b.prove_service(0, &mut queues[0]);
    }
}

#[test]
fn registers_take_aligned_words_and_nothing_else() {
    let b = bench();
    for offset in 0..0x100u64 {
        for len in [0usize, 1, 2, 3, 4, 5, 8, 16] {
            if len == 4 && offset % 4 == 0 {
                continue;
            }
            let mut data = vec![0x5a; len];
            assert_eq!(b.refusals(|| b.device.read(offset, &mut data)), 1, "{offset:#x}+{len}");
            assert_eq!(data, vec![0xff; len]);
            assert_eq!(b.refusals(|| b.device.write(offset, &vec![1; len])), 1, "{offset:#x}+{len}");
        }
    }
    for offset in [0x1000, 0xffff_fffc, 1 << 32, 1 << 32 | at::STATUS, u64::MAX - 3, u64::MAX] {
        let mut data = [0; 4];
        assert_eq!(b.refusals(|| b.device.read(offset, &mut data)), 1);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(b.refusals(|| b.device.write(offset, &[1, 0, 0, 0])), 1);
    }
    assert_eq!(b.driver.status(), 0);
}

#[test]
fn registers_that_only_go_one_way_are_refused_the_other() {
    let b = bench();
    let both = [at::QUEUE_READY, at::STATUS];
    let read_only = [
        at::MAGIC,
        at::VERSION,
        at::DEVICE_ID,
        at::VENDOR_ID,
        at::DEVICE_FEATURES,
        at::QUEUE_NUM_MAX,
        at::INTERRUPT_STATUS,
        at::SHM_LEN,
        at::SHM_LEN + 4,
        at::SHM_BASE,
        at::SHM_BASE + 4,
        at::CONFIG_GENERATION,
    ];
    for offset in (0..0x100).step_by(4) {
        let readable = read_only.contains(&offset) || both.contains(&offset);
        let mut value = 0;
        assert_eq!(b.refusals(|| value = b.driver.read(offset)), u64::from(!readable), "{offset:#x}");
        assert!(readable || value == 0);
    }
    for offset in read_only.into_iter().chain([at::QUEUE_RESET, 0x0a8, 0x0c4, 0x0f8]) {
        assert_eq!(b.refusals(|| b.driver.write(offset, 1)), 1, "{offset:#x}");
    }
}

#[test]
fn there_is_no_shared_memory_whatever_is_selected() {
    let b = bench();
    for region in [0, 1, 255, u32::MAX] {
        b.driver.write(at::SHM_SEL, region);
        for offset in [at::SHM_LEN, at::SHM_LEN + 4, at::SHM_BASE, at::SHM_BASE + 4] {
            assert_eq!(b.driver.read(offset), u32::MAX);
        }
    }
    assert_eq!(b.device.refusals(), 0);
}

#[test]
fn status_out_of_order_changes_nothing() {
    let b = bench();
    for status in [2, 4, 8, 12, 15, 5, NEEDS_RESET, 256, 257, u32::MAX, 1 << 31] {
        assert_eq!(b.refusals(|| b.driver.set_status(status)), 1, "{status}");
        assert_eq!(b.driver.status(), 0);
    }
    assert!(b.driver.settle(VIRTIO_F_VERSION_1));
    for status in [ACKNOWLEDGED, DRIVING, SETTLED | NEEDS_RESET, SETTLED | 256] {
        assert_eq!(b.refusals(|| b.driver.set_status(status)), 1, "{status}");
        assert_eq!(b.driver.status(), SETTLED);
    }
}

#[test]
fn features_are_settled_once() {
    let b = bench();
    for features in [0, FEATURE, VIRTIO_F_VERSION_1 | 1 << 40, VIRTIO_F_VERSION_1 | 1 << 2] {
        assert!(!b.driver.settle(features), "{features:#x}");
        assert_eq!(b.driver.status(), DRIVING);
    }
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1 | FEATURE);
    assert_eq!(b.refusals(|| b.driver.write(at::DRIVER_FEATURES, 1)), 1);
    b.prove_service(0, &mut queues[0]);
    // A second driver may want others.
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    b.prove_service(0, &mut queues[0]);
}

#[test]
fn queues_that_do_not_exist_read_as_absent_and_take_nothing() {
    let b = bench();
    assert!(b.driver.settle(VIRTIO_F_VERSION_1));
    for queue in [2, 3, 0xffff, 0x1_0000, 0x1_0001, u32::MAX] {
        b.driver.write(at::QUEUE_SEL, queue);
        assert_eq!((b.driver.read(at::QUEUE_NUM_MAX), b.driver.read(at::QUEUE_READY)), (0, 0));
        for offset in [at::QUEUE_NUM, at::QUEUE_DESC, at::QUEUE_DRIVER + 4, at::QUEUE_READY] {
            assert_eq!(b.refusals(|| b.driver.write(offset, 1)), 1);
        }
        assert_eq!(b.refusals(|| b.driver.write(at::QUEUE_NOTIFY, queue)), 1);
    }
}

#[test]
fn impossible_sizes_and_ready_values_are_refused() {
    let b = bench();
    assert!(b.driver.settle(VIRTIO_F_VERSION_1));
    b.driver.write(at::QUEUE_SEL, 1);
    for size in [0, 3, 16, 0x8000, 0x1_0000, 0x1_0008, u32::MAX] {
        assert_eq!(b.refusals(|| b.driver.write(at::QUEUE_NUM, size)), 1, "{size}");
    }
    for ready in [2, 3, 0x100, u32::MAX] {
        assert_eq!(b.refusals(|| b.driver.write(at::QUEUE_READY, ready)), 1, "{ready}");
        assert_eq!(b.driver.read(at::QUEUE_READY), 0);
    }
    b.driver.write(at::QUEUE_READY, 1);
    assert_eq!(b.refusals(|| b.driver.write(at::QUEUE_NUM, 4)), 1, "while it is ready");
    b.driver.write(at::QUEUE_READY, 0);
    assert_eq!(b.refusals(|| b.driver.write(at::QUEUE_NUM, 4)), 0);
}

#[test]
fn queues_in_impossible_places_ask_for_a_reset_and_a_reset_heals() {
    let b = bench();
    let good = RingLayout { size: 8, desc_table: 0x1000, avail_ring: 0x2000, used_ring: 0x3000 };
    let end = 1 << 20;
    let bad = [
        RingLayout { desc_table: 0, ..good },
        RingLayout { desc_table: 0x1008, ..good },
        RingLayout { avail_ring: 0x2001, ..good },
        RingLayout { used_ring: 0x3002, ..good },
        RingLayout { desc_table: end - 16, ..good },
        RingLayout { avail_ring: end, ..good },
        RingLayout { used_ring: u64::MAX - 3, ..good },
        RingLayout { desc_table: 1 << 63, ..good },
    ];
    for layout in bad {
        assert!(b.driver.settle(VIRTIO_F_VERSION_1));
        // The good one has been started when the other fails.
        b.driver.set_up(0, good);
        b.driver.set_up(1, layout);
        b.driver.set_status(RUNNING);
        assert_eq!(b.driver.status(), RUNNING | NEEDS_RESET, "{layout:?}");
        assert_eq!(b.driver.interrupted(Duration::from_secs(60)), Some(2));
        assert!(b.heard.take()[0].contains("queue 1"));
        b.driver.kick(0);
        assert_eq!(b.refusals(|| b.driver.set_status(RUNNING | NEEDS_RESET)), 1);
        assert_eq!(b.refusals(|| b.driver.set_up(0, good)), 8, "set up while it needs a reset");
        let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
        b.prove_service(0, &mut queues[0]);
    }
}

#[test]
fn queues_that_overlap_are_the_drivers_own_business() {
    let b = bench();
    for (desc_table, avail_ring, used_ring) in
        [(0x1000, 0x1000, 0x1000), (0x1000, 0x1010, 0x1004), (0x2000, 0x2100, 0x2000)]
    {
        assert!(b.driver.settle(VIRTIO_F_VERSION_1));
        let layout = RingLayout { size: 8, desc_table, avail_ring, used_ring };
        b.driver.set_up(0, layout);
        b.driver.set_up(1, layout);
        b.driver.set_status(RUNNING);
        for queue in [0, 1, 0, 1] {
            b.driver.kick(queue);
            b.driver.write(at::QUEUE_NOTIFY, queue.into());
        }
        let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
        b.prove_service(0, &mut queues[0]);
        b.prove_service(1, &mut queues[1]);
    }
}

#[test]
fn driver_that_gives_up_says_so_and_may_begin_again() {
    let b = bench();
    assert!(b.driver.settle(VIRTIO_F_VERSION_1));
    b.driver.set_status(SETTLED | 128);
    assert_eq!(b.driver.status(), SETTLED | 128);
    assert_eq!(b.refusals(|| b.driver.set_status(RUNNING | 128)), 1);
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    b.prove_service(1, &mut queues[1]);
}

#[test]
fn driver_ok_twice_starts_once() {
    let b = bench();
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    b.prove_service(0, &mut queues[0]);
    b.driver.set_status(RUNNING);
    b.prove_service(0, &mut queues[0]);
    assert_eq!(queues[0].used_idx(), 2);
    assert_eq!(b.refusals(|| b.driver.set_up(0, queues[0].layout())), 8, "a running queue is moved");
    b.prove_service(0, &mut queues[0]);
}

#[test]
fn a_kick_before_driver_ok_is_not_lost() {
    for by_register in [false, true] {
        let b = bench();
        assert!(b.driver.settle(VIRTIO_F_VERSION_1));
        let mut queues = b.driver.rings(&b.ram, 0x1000, 64, 0);
        queues[0].offer(&[(0x8_0000, 16, true)]).unwrap();
        if by_register {
            b.driver.write(at::QUEUE_NOTIFY, 0);
        } else {
            b.driver.kick(0);
        }
        assert_eq!(queues[0].used_idx(), 0, "served before DRIVER_OK");
        b.driver.run(&queues);
        b.driver.wait("answer", || queues[0].take_used());
    }
}

#[test]
fn a_kick_by_register_goes_where_an_ioeventfd_puts_it() {
    let b = bench();
    let mut queues = b.driver.begin(&b.ram, VIRTIO_F_VERSION_1);
    for _ in 0..100 {
        queues[1].offer(&[(0x8_0000, 16, true)]).unwrap();
        b.driver.write(at::QUEUE_NOTIFY, 1);
        b.driver.wait("answer", || queues[1].take_used());
    }
}

#[test]
fn configuration_is_read_in_any_width_within_its_bounds() {
    let b = bench();
    let all: Vec<u8> = (0..CONFIG_LEN as u8).collect();
    for offset in 0..u64::from(CONFIG_LEN) + 8 {
        for len in 0..20 {
            let inside = offset as usize + len <= all.len();
            let mut data = vec![0x5a; len];
            let refused = b.refusals(|| b.device.read(at::CONFIG + offset, &mut data));
            assert_eq!(refused, u64::from(!inside), "{offset}+{len}");
            let expected = if inside { all[offset as usize..][..len].to_vec() } else { vec![0xff; len] };
            assert_eq!(data, expected);
            assert_eq!(b.refusals(|| b.device.write(at::CONFIG + offset, &data)), u64::from(!inside));
        }
    }
    assert_eq!(b.driver.config(0, all.len()), all);
    for offset in [at::CONFIG + (1 << 32), u64::MAX] {
        assert_eq!(b.refusals(|| b.device.write(offset, &[0])), 1);
    }
}

#[test]
fn configuration_is_asked_for_when_it_may_have_changed_and_no_more() {
    use std::sync::atomic::Ordering;
    let b = bench();
    let asked = || b.handle.asked.load(Ordering::Relaxed);
    for _ in 0..100 {
        b.driver.config(0, 13);
    }
    assert_eq!(asked(), 1);
    b.device.write(at::CONFIG + 3, &[77]);
    assert_eq!((b.driver.config(3, 1), asked()), (vec![77], 2));
    let generation = b.driver.read(at::CONFIG_GENERATION);
    b.handle.reconfigure(4, 88);
    b.heard.wait_for("configuration");
    assert_ne!(b.driver.read(at::CONFIG_GENERATION), generation);
    assert_eq!((b.driver.config(4, 1), asked()), (vec![88], 3));
    b.driver.settle(VIRTIO_F_VERSION_1);
    b.driver.config(0, 1);
    assert_eq!(asked(), 4);
}
