//! The shell against a front end built on the same protocol crate: order of messages, late kicks, rings that
//! are never kicked, quiescing, reconnection, refusals.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use strato_devices::rng::{Rng, RngConfig};
use strato_devices::vsock::{Vsock, VsockConfig};
use strato_vhost_user::Server;
use strato_virtio::mock::MockQueue;
use strato_virtio::{RING_FEATURES, VIRTIO_F_VERSION_1};
use support::{FrontEnd, PROTOCOL, memfd, region, rng, serve};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

#[test]
fn kicked_ring_is_served_and_called() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn ring_that_is_never_kicked_is_seen() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.ask();
    front_end.start(0);
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn kick_descriptor_may_come_last() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.set_up(0);
    front_end.requests.set_vring_enable(0, true).unwrap();
    front_end.ask();
    front_end.kick.write(1).unwrap();
    front_end.requests.set_vring_kick(0, &front_end.kick).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn disabled_ring_is_left_alone_until_it_is_enabled() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    front_end.requests.set_vring_enable(0, false).unwrap();
    front_end.ask();
    front_end.kick.write(1).unwrap();
    // An answered request proves that the device had its chance.
    front_end.requests.get_features().unwrap();
    assert_eq!(front_end.queue.used_idx(), 0);
    front_end.requests.set_vring_enable(0, true).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn nothing_is_touched_after_get_vring_base() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    for round in 0..50u32 {
        let mut asked = 0;
        while asked < 8 {
            front_end.ask();
            asked += 1;
            front_end.kick.write(1).unwrap();
        }
        let base = front_end.requests.get_vring_base(0).unwrap();
        let used = front_end.queue.used_idx();
        assert_eq!(base as u16, used, "everything taken was given back, round {round}");
        while front_end.queue.take_used().is_some() {}
        front_end.ask();
        front_end.kick.write(1).unwrap();
        front_end.requests.get_features().unwrap();
        assert_eq!(front_end.queue.used_idx(), used);
        front_end.start(base as u16);
        for _ in 0..asked + 1 - used.wrapping_sub((round * 9) as u16) {
            front_end.answered();
        }
        assert_eq!(front_end.queue.used_idx(), (round as u16 + 1) * 9);
    }
}

#[test]
fn memory_can_be_replaced_under_a_running_ring() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    for _ in 0..20 {
        front_end.ask();
        front_end.kick.write(1).unwrap();
        front_end.send_memory().unwrap();
        assert_eq!(front_end.answered(), 16);
    }
}

#[test]
fn next_front_end_finds_the_device_and_the_ring_where_they_were() {
    let backend = rng(2);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
    // The front end is lost, the guest and its ring are not.
    let (ram, driver) = (Arc::clone(&front_end.ram), front_end.queue);
    drop(front_end.requests);
    let mut second = FrontEnd::with_memory(&backend, Arc::clone(&ram), driver);
    second.ask();
    second.start(1);
    assert_eq!(second.answered(), 16);
    assert_eq!(second.queue.used_idx(), 2);
}

#[test]
fn refused_requests_are_answered_and_the_session_goes_on() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    let requests = &front_end.requests;
    assert!(requests.set_vring_num(0, 24).is_err(), "no power of two");
    assert!(requests.set_vring_call(2, &front_end.call).is_err(), "no such queue");
    assert!(requests.set_vring_base(1, 0).is_err(), "no such queue");
    let outside = VringConfigData { desc_table_addr: 0x10, ..front_end.addresses() };
    requests.set_vring_num(0, 16).unwrap();
    requests.set_vring_addr(0, &outside).unwrap();
    requests.set_vring_kick(0, &front_end.kick).unwrap();
    assert!(front_end.requests.set_vring_enable(0, true).is_err(), "ring outside memory");
    front_end.start(0);
    assert!(front_end.requests.set_vring_base(0, 5).is_err(), "ring is running");
    assert!(front_end.requests.set_features(RING_FEATURES | PROTOCOL).is_err(), "device is running");
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
    // Said after the front end has its answer.
    for number in 0..6 {
        assert!(backend.reports.recv_timeout(Duration::from_secs(60)).is_ok(), "report {number}");
    }
}

#[test]
fn memory_that_is_shorter_than_it_says_is_refused() {
    let backend = rng(1);
    let front_end = FrontEnd::connect(&backend);
    let short = memfd(4096);
    let lie = VhostUserMemoryRegionInfo { mmap_handle: short.as_raw_fd(), ..region(&front_end.ram) };
    assert!(front_end.requests.set_mem_table(&[lie]).is_err());
    let overlapping = [region(&front_end.ram), region(&front_end.ram)];
    assert!(front_end.requests.set_mem_table(&overlapping).is_err());
    front_end.send_memory().unwrap();
}

#[test]
fn reset_stops_the_ring_and_a_new_start_works() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
    front_end.requests.reset_device().unwrap();
    front_end.queue = MockQueue::new(&front_end.ram, 0x1000, 16).0;
    front_end.requests.set_features(VIRTIO_F_VERSION_1 | PROTOCOL).unwrap();
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn configuration_is_read_within_its_bounds_only() {
    let path = std::env::temp_dir().join(format!("strato-vu-{}-uds", std::process::id()));
    let config = VsockConfig { guest_cid: 0x1234, path, max_connections: 4 };
    let backend = serve(Box::new(Vsock::new(config).unwrap()), 1);
    let mut front_end = FrontEnd::connect(&backend);
    let flags = VhostUserConfigFlags::empty();
    let (_, cid) = front_end.requests.get_config(0, 8, flags, &[0; 8]).unwrap();
    assert_eq!(cid, 0x1234u64.to_le_bytes());
    assert!(front_end.requests.set_config(6, flags, &[0; 4]).is_err());
    assert_eq!(front_end.requests.get_queue_num().unwrap(), 3);
}

#[test]
fn front_end_that_talks_nonsense_is_dropped_and_the_next_one_served() {
    let backend = rng(3);
    let mut noise = UnixStream::connect(&backend.path).unwrap();
    noise.write_all(&[0xff; 64]).unwrap();
    drop(noise);
    let mut half = UnixStream::connect(&backend.path).unwrap();
    half.write_all(&[5, 0, 0, 0, 1, 0, 0, 0, 72, 0, 0, 0, 1]).unwrap();
    drop(half);
    let mut front_end = FrontEnd::connect(&backend);
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn broken_ring_signals_the_error_line_and_the_process_lives() {
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    let error = EventFd::new(0).unwrap();
    front_end.requests.set_vring_err(0, &error).unwrap();
    front_end.start(0);
    front_end.queue.set_avail_idx(999);
    front_end.kick.write(1).unwrap();
    assert_eq!(error.read().unwrap(), 1);
    front_end.requests.reset_device().unwrap();
}

#[test]
fn socket_left_over_by_a_killed_process_is_replaced_and_a_live_one_is_not() {
    let path = std::env::temp_dir().join(format!("strato-vu-{}-stale", std::process::id()));
    let stale = UnixListener::bind(&path).unwrap();
    let core = || Box::new(Rng::new(RngConfig::default()).unwrap());
    assert!(Server::new(&path, core()).is_err());
    drop(stale);
    let server = Server::new(&path, core());
    std::fs::remove_file(&path).unwrap();
    assert!(server.is_ok());
}

/// What QEMU's network front end does, and crate `vhost` refuses.
#[test]
fn ring_enabled_before_the_features_are_set_is_remembered() {
    use std::io::Read;
    let backend = rng(1);
    let mut front_end = UnixStream::connect(&backend.path).unwrap();
    let send = |front_end: &mut UnixStream, words: &[u32]| {
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        front_end.write_all(&message).unwrap();
    };
    let answer = |front_end: &mut UnixStream| {
        let mut message = [0; 20];
        front_end.read_exact(&mut message).unwrap();
        [0, 4, 8, 12].map(|at| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap()))
    };
    // SET_VRING_ENABLE of ring 0, of a ring that is not there, and to something that is neither on nor off.
    for (index, value, refused) in [(0, 1, 0), (7, 1, 1), (0, 2, 1)] {
        send(&mut front_end, &[18, 1 | 8, 8, index, value]);
        assert_eq!(answer(&mut front_end), [18, 1 | 4, 8, refused]);
    }
    // The session goes on: GET_FEATURES.
    send(&mut front_end, &[1, 1, 0]);
    assert_eq!(answer(&mut front_end)[..3], [1, 1 | 4, 8]);
}
