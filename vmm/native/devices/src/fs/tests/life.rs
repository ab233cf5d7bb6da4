//! Start, stop, reset and save of the device, with requests under way.

use std::fs;
use std::sync::Arc;

use strato_virtio::mock::guest_ram;
use strato_virtio::{DeviceCore, Notification, RingStart, SaveObstacle};

use super::super::backend::ROOT_NODE as ROOT;
use super::super::passthrough::{Passthrough, PassthroughConfig, Root};
use super::super::{Fs, FsConfig};
use super::guest::{ANSWER, Body, Guest, REQUEST, REQUESTS, Setup};

fn device(config: FsConfig) -> std::io::Result<Fs> {
    let passthrough = Passthrough::new(PassthroughConfig::new(Root::Collection).unwrap()).unwrap();
    Fs::new(config, Arc::new(passthrough))
}

#[test]
fn configuration_space_names_the_share() {
    let config = FsConfig { tag: "root,fs".into(), request_queues: 3, ..FsConfig::default() };
    let device = device(config).unwrap();
    let space = device.config();
    assert_eq!(space.get(0, 8), Some(&b"root,fs\0"[..]));
    assert_eq!(space.get(36, 4), Some(&[3, 0, 0, 0][..]));
    assert_eq!((space.len(), device.info().device_type, device.info().queue_sizes.len()), (40, 26, 4));
}

#[test]
fn impossible_configurations_are_refused() {
    for (tag, request_queues) in [("", 1), (&*"t".repeat(37), 1), ("a\0b", 1), ("t", 0), ("t", 65)] {
        let config = FsConfig { tag: tag.into(), request_queues, ..FsConfig::default() };
        assert!(device(config).is_err(), "{tag:?}, {request_queues} queues");
    }
}

/// Offers `count` requests that go to the pool, each with buffers of its own.
fn offer_syncs(guest: &mut Guest, handle: u64, count: u64) {
    for number in 0..count {
        let body = Body::new().u64(handle).u32(0).u32(0);
        let mut request = guest.header(20, 0, body.0.len());
        request.extend(&body.0);
        let at = number * 64;
        guest.queues[1].write(REQUEST + at, &request);
        let buffers = [(REQUEST + at, request.len() as u32, false), (ANSWER + at, 64, true)];
        guest.queues[1].offer(&buffers).unwrap();
    }
    guest.host.kick(REQUESTS);
}

fn used(guest: &mut Guest) -> u64 {
    std::iter::from_fn(|| guest.queues[1].take_used()).map(|(_, len)| assert_eq!(len, 16)).count() as u64
}

#[test]
fn stopping_waits_for_what_is_under_way() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.write(handle, 0, &[7; 4000]).unwrap();
    let before = guest.queues[1].used_idx();
    offer_syncs(&mut guest, handle, 20);
    let position = guest.host.stop_ring(REQUESTS).unwrap();
    assert_eq!(used(&mut guest), 20);
    assert_eq!(position, before.wrapping_add(20));
    // The same driver goes on: the guest's handles are good.
    let layout = guest.queues[1].layout();
    let start = RingStart { queue: REQUESTS, layout, next_avail: position, kick: None };
    guest.host.start_ring(start).unwrap();
    assert_eq!(guest.read(handle, 0, 2), Ok(vec![7, 7]));
}

#[test]
fn a_new_driver_finds_nothing_of_the_old_ones() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.forget(ROOT, 1);
    for queue in [0, REQUESTS] {
        guest.host.stop_ring(queue);
    }
    let layout = guest.queues[1].layout();
    // Its ring begins at zero.
    let (fresh, _) = strato_virtio::mock::MockQueue::new(&guest.ram, layout.desc_table, 128);
    guest.queues[1] = fresh;
    guest.host.start_ring(RingStart { queue: REQUESTS, layout, next_avail: 0, kick: None }).unwrap();
    assert_eq!(guest.read(handle, 0, 1), Err(libc::EIO), "not mounted");
    guest.mount();
    assert_eq!(guest.read(handle, 0, 1), Err(libc::EBADF));
    // A queue that starts later is the same driver's.
    let (_, handle) = guest.create(ROOT, "other", 0o600).unwrap();
    let layout = guest.queues[0].layout();
    let (fresh, _) = strato_virtio::mock::MockQueue::new(&guest.ram, layout.desc_table, 128);
    guest.queues[0] = fresh;
    guest.host.start_ring(RingStart { queue: 0, layout, next_avail: 0, kick: None }).unwrap();
    assert_eq!(guest.read(handle, 0, 1), Ok(vec![]));
}

#[test]
fn reset_in_mid_flight_ends_the_session() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    offer_syncs(&mut guest, handle, 30);
    guest.host.reset();
    assert!(used(&mut guest) <= 30);
    let layout = guest.queues[1].layout();
    let (fresh, _) = strato_virtio::mock::MockQueue::new(&guest.ram, layout.desc_table, 128);
    guest.queues[1] = fresh;
    let layout = guest.queues[0].layout();
    let (fresh, _) = strato_virtio::mock::MockQueue::new(&guest.ram, layout.desc_table, 128);
    guest.queues[0] = fresh;
    guest.start();
    assert_eq!(guest.read(handle, 0, 1), Err(libc::EIO));
    guest.mount();
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn new_memory_is_used_after_the_old_has_come_to_rest() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    offer_syncs(&mut guest, handle, 10);
    let old = Arc::downgrade(&guest.ram);
    guest.ram = guest_ram(0x80_0000);
    let _ = guest.host.set_memory(Arc::clone(&guest.ram));
    guest.queues.clear();
    assert!(old.upgrade().is_none(), "somebody still holds the old memory");
}

#[test]
fn destroy_ends_the_session_and_a_new_mount_begins_one() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.ask(38, 0, Body::new()).unwrap();
    assert_eq!(guest.read(handle, 0, 1), Err(libc::EIO));
    guest.mount();
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn a_mounted_device_cannot_be_restored() {
    let mut guest = Guest::unmounted(Setup::default());
    assert_eq!(guest.host.save_obstacle(), None);
    let empty = guest.host.save();
    assert!(guest.host.restore(&empty).is_ok());
    let mut guest = Guest::new();
    assert_eq!(guest.host.save_obstacle(), Some(SaveObstacle::MountedShare));
    let mounted = guest.host.save();
    let error = guest.host.restore(&mounted).unwrap_err();
    assert!(error.to_string().contains("mounted"), "{error}");
}

#[test]
fn many_requests_at_once_are_all_answered() {
    for threads in [0, 1, 4] {
        let mut setup = Setup::default();
        setup.config.threads = threads;
        let mut guest = Guest::with(setup);
        let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
        offer_syncs(&mut guest, handle, 60);
        let mut seen = 0;
        while seen < 60 {
            seen += used(&mut guest);
            if seen < 60 {
                assert!(guest.host.turn(10_000).unwrap());
                guest.host.kick(REQUESTS);
            }
        }
        assert!(guest.notifier.take().contains(&Notification::Queue(REQUESTS)));
        assert_eq!(guest.counter("pooled_requests") > 0, threads > 0);
    }
}

#[test]
fn forgets_are_announced_with_the_next_answer_or_soon() {
    let mut guest = Guest::new();
    let hiprio = Notification::Queue(0);
    guest.notifier.take();
    guest.forget(ROOT, 0);
    assert!(!guest.notifier.take().contains(&hiprio));
    guest.ask(17, ROOT, Body::new()).unwrap();
    assert_eq!(guest.notifier.take(), [hiprio, Notification::Queue(REQUESTS)]);
    guest.forget(ROOT, 0);
    // The timer may have been on its way since the first.
    while !guest.notifier.take().contains(&hiprio) {
        assert!(guest.host.turn(10_000).unwrap(), "never told");
    }
    let mut told = 0;
    for _ in 0..200 {
        guest.forget(ROOT, 0);
        told += guest.notifier.take().len();
    }
    assert!(told >= 3);
    guest.forget(ROOT, 0);
    guest.host.stop_ring(0);
    assert!(guest.notifier.take().contains(&hiprio));
}

#[test]
fn contents_stay_whole_with_many_writes_at_once() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    let len = 300 << 10;
    for number in 0..8u64 {
        let mut header = guest.header(16, 0, 40 + len);
        header.extend(Guest::write_body(handle, number * len as u64, &[], 0, 0).0);
        header[56..60].copy_from_slice(&(len as u32).to_le_bytes());
        let at = number * 128;
        guest.queues[1].write(ANSWER + at, &header);
        guest.queues[1].write(REQUEST + number * 0x5_0000, &vec![number as u8 + 1; len]);
        let data = (REQUEST + number * 0x5_0000, len as u32, false);
        guest.queues[1].offer(&[(ANSWER + at, 80, false), data, (ANSWER + at + 96, 24, true)]).unwrap();
    }
    guest.host.kick(REQUESTS);
    let mut seen = 0;
    while seen < 8 {
        while let Some((_, used)) = guest.queues[1].take_used() {
            assert_eq!(used, 24);
            seen += 1;
        }
        assert!(seen == 8 || guest.host.turn(10_000).unwrap());
    }
    let contents = fs::read(guest.folder.0.join("file")).unwrap();
    assert_eq!(contents.len(), 8 * len);
    assert!(contents.chunks(len).enumerate().all(|(n, chunk)| chunk.iter().all(|byte| *byte == n as u8 + 1)));
}
