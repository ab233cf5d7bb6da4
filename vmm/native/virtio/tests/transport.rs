//! The state machine that every transport shares: order, windows, refusals.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use strato_virtio::transport::status::*;
use strato_virtio::transport::{Effect, Refused, RingPart, Transport};
use strato_virtio::{DeviceInfo, RING_FEATURES, VIRTIO_F_VERSION_1};

const FEATURE: u64 = 1 << 3;

fn transport() -> Transport {
    Transport::new(&DeviceInfo {
        device_type: 4,
        name: "test",
        features: RING_FEATURES | FEATURE,
        queue_sizes: vec![256, 8],
        config_len: 0,
    })
}

fn accept(transport: &mut Transport, features: u64) {
    transport.select_driver_features(0);
    transport.write_driver_features(features as u32).unwrap();
    transport.select_driver_features(1);
    transport.write_driver_features((features >> 32) as u32).unwrap();
}

fn with_features() -> Transport {
    let mut transport = transport();
    assert_eq!(transport.write_status(ACKNOWLEDGE), Ok(Effect::None));
    assert_eq!(transport.write_status(ACKNOWLEDGE | DRIVER), Ok(Effect::None));
    accept(&mut transport, VIRTIO_F_VERSION_1 | FEATURE);
    let wanted = Effect::Features(VIRTIO_F_VERSION_1 | FEATURE);
    assert_eq!(transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK), Ok(wanted));
    transport
}

fn running() -> Transport {
    let mut transport = with_features();
    transport.select_queue(1);
    transport.write_queue_size(4).unwrap();
    transport.write_ring_address(RingPart::Desc, false, 0x1000).unwrap();
    transport.write_ring_address(RingPart::Desc, true, 0x1).unwrap();
    transport.write_ring_address(RingPart::Avail, false, 0x2000).unwrap();
    transport.write_ring_address(RingPart::Used, false, 0x3000).unwrap();
    transport.write_queue_ready(true).unwrap();
    let status = transport.status() | DRIVER_OK;
    let Ok(Effect::Activate(queues)) = transport.write_status(status) else { panic!("not activated") };
    assert_eq!(queues.len(), 1);
    assert_eq!((queues[0].0, queues[0].1.size, queues[0].1.desc_table), (1, 4, 0x1_0000_1000));
    transport
}

#[test]
fn driver_in_order_activates_the_ready_queues() {
    let transport = running();
    assert!(transport.active());
}

#[test]
fn status_out_of_order_is_refused_and_changes_nothing() {
    let mut transport = transport();
    for value in
        [DRIVER, FEATURES_OK, DRIVER_OK, ACKNOWLEDGE | DRIVER_OK, ACKNOWLEDGE | DEVICE_NEEDS_RESET, 15]
    {
        assert_eq!(transport.write_status(value), Err(Refused::Status), "{value}");
        assert_eq!(transport.status(), 0);
    }
    let mut transport = with_features();
    let before = transport.status();
    assert_eq!(transport.write_status(ACKNOWLEDGE), Err(Refused::Status), "bits cleared");
    assert_eq!(transport.status(), before);
}

#[test]
fn features_not_offered_or_without_version_1_leave_features_ok_clear() {
    for features in [FEATURE, VIRTIO_F_VERSION_1 | 1 << 50, 0] {
        let mut transport = transport();
        transport.write_status(ACKNOWLEDGE | DRIVER).unwrap();
        accept(&mut transport, features);
        assert_eq!(transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK), Ok(Effect::None));
        assert_eq!(transport.status(), ACKNOWLEDGE | DRIVER);
        assert!(transport.write_status(ACKNOWLEDGE | DRIVER | DRIVER_OK).is_err());
    }
}

#[test]
fn features_outside_their_window_are_refused() {
    let mut early = transport();
    assert_eq!(early.write_driver_features(1), Err(Refused::Features));
    let mut late = with_features();
    late.select_driver_features(0);
    assert_eq!(late.write_driver_features(0), Err(Refused::Features));
    let mut page = transport();
    page.write_status(ACKNOWLEDGE | DRIVER).unwrap();
    page.select_driver_features(2);
    assert_eq!(page.write_driver_features(1), Err(Refused::Features));
    page.select_device_features(u32::MAX);
    assert_eq!(page.device_features(), 0);
}

#[test]
fn queue_set_up_is_refused_before_features_after_driver_ok_and_while_ready() {
    let mut early = transport();
    assert_eq!(early.write_queue_size(4), Err(Refused::Queue));
    let mut ready = with_features();
    ready.write_queue_ready(true).unwrap();
    assert_eq!(ready.write_queue_size(4), Err(Refused::Queue));
    ready.write_queue_ready(false).unwrap();
    ready.write_queue_size(4).unwrap();
    let mut late = running();
    assert_eq!(late.write_queue_size(8), Err(Refused::Queue), "the size of a running queue is frozen");
    assert_eq!(late.write_ring_address(RingPart::Used, false, 0), Err(Refused::Queue));
    assert_eq!(late.write_queue_ready(false), Err(Refused::Queue));
    assert_eq!(late.queue_size(), 4);
}

#[test]
fn impossible_queues_are_refused() {
    let mut transport = with_features();
    for size in [0, 3, 512, u16::MAX] {
        assert_eq!(transport.write_queue_size(size), Err(Refused::QueueSize));
    }
    for queue in [2, 0x1_0000, u32::MAX] {
        transport.select_queue(queue);
        assert_eq!(transport.write_queue_ready(true), Err(Refused::NoSuchQueue));
        assert_eq!(
            (transport.queue_max_size(), transport.queue_size(), transport.queue_ready()),
            (0, 0, false)
        );
    }
}

#[test]
fn needs_reset_accepts_nothing_but_a_reset() {
    let mut transport = running();
    assert!(transport.needs_reset());
    assert!(!transport.active());
    assert!(transport.write_status(transport.status() | FAILED).is_ok());
    assert_eq!(transport.write_status(transport.status() & !FAILED), Err(Refused::Status));
    assert_eq!(transport.write_status(0), Ok(Effect::Reset));
    assert_eq!((transport.status(), transport.queue_size()), (0, 256));
    transport.select_queue(1);
    assert_eq!((transport.queue_size(), transport.queue_ready()), (8, false));
}

#[test]
fn failure_before_driver_ok_does_not_interrupt() {
    let mut transport = with_features();
    assert!(!transport.needs_reset());
    let status = transport.status() | DRIVER_OK;
    assert_eq!(transport.write_status(status), Err(Refused::Status));
}

#[test]
fn queue_that_is_not_ready_may_be_said_so_at_any_time() {
    let mut transport = running();
    transport.select_queue(0);
    assert_eq!(transport.write_queue_ready(false), Ok(()));
    transport.select_queue(1);
    assert_eq!(transport.write_queue_ready(false), Err(Refused::Queue), "this one runs");
    transport.write_status(0).unwrap();
    assert_eq!(transport.write_queue_ready(false), Ok(()));
    transport.select_queue(2);
    assert_eq!(transport.write_queue_ready(false), Err(Refused::NoSuchQueue));
}

#[test]
fn saved_registers_are_restored() {
    let mut broken = running();
    broken.needs_reset();
    let mut failed = with_features();
    failed.write_status(failed.status() | FAILED).unwrap();
    for mut saved in [transport(), with_features(), running(), broken, failed] {
        saved.select_queue(7);
        saved.select_device_features(1);
        saved.select_driver_features(3);
        let record = saved.save();
        let mut restored = running();
        restored.restore(&record).unwrap();
        assert_eq!(restored.save(), record);
        assert_eq!(restored.status(), saved.status());
        assert_eq!(restored.running_queues(), saved.running_queues());
        assert_eq!(restored.settled_features(), saved.settled_features());
        assert_eq!(restored.device_features(), saved.device_features());
    }
}

#[test]
fn saved_registers_that_no_driver_can_have_brought_about_are_refused() {
    let record = running().save();
    // Behind the header: status, features, three selectors, the number of queues; then each queue's.
    let (status, features, queues) = (12, 13, 35);
    let ready = queues + 27;
    let changes: [(usize, u8); 10] = [
        (status, 4),
        (status, 7),
        (status, 16 | 15),
        (status, 3),
        (features, 0xff),
        (features + 7, 1),
        (33, 3),
        (ready, 2),
        (ready + 1, 3),
        (ready + 1, 16),
    ];
    for (at, value) in changes {
        let mut bad = record.clone();
        bad[at] = value;
        let mut transport = with_features();
        assert!(transport.restore(&bad).is_err(), "{at}: {value}");
        assert_eq!((transport.status(), transport.settled_features()), (0, 0));
    }
    for len in 0..record.len() {
        assert!(transport().restore(&record[..len]).is_err());
    }
}
