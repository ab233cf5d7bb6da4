//! Pauses, saved and restored devices, new drivers, and the event that tells a guest of a transport reset.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use strato_virtio::{Notification, RING_FEATURES, RingStart, VIRTIO_F_EVENT_IDX};
use vm_memory::{Bytes, GuestAddress};

use super::super::queue::SHUTDOWN_SEND;
use super::super::{Header, Op};
use super::guest::{Folder, Guest, TX_SIZE, packet, uds, uds_for};

const PORT: u32 = 1234;
const GUEST_PORT: u32 = 5000;
const EVENTS: u64 = 0x3_0000;

fn limited(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn host_asks(folder: &Folder) -> UnixStream {
    let mut host = limited(UnixStream::connect(uds(folder)).unwrap());
    host.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).unwrap();
    host
}

/// A connection that the guest made.
fn from_guest(guest: &mut Guest, folder: &Folder) -> UnixStream {
    let listener = UnixListener::bind(uds_for(folder, PORT)).unwrap();
    guest.send(packet(Op::Request, PORT, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
    limited(listener.accept().unwrap().0)
}

fn data(bytes: &[u8]) -> Header {
    Header { len: bytes.len() as u32, ..packet(Op::ReadWrite, PORT, GUEST_PORT) }
}

fn save_and_restore(guest: &mut Guest) {
    let saved = guest.host.save();
    for (queue, ring) in guest.host.restore(&saved).unwrap().into_iter().enumerate() {
        let (layout, next_avail) = ring.unwrap();
        let start = RingStart { queue: queue as u16, layout, next_avail, kick: None };
        guest.host.start_ring(start).unwrap();
    }
}

fn offer_event(guest: &mut Guest) {
    guest.event.write(EVENTS, &[0xff; 4]);
    guest.event.offer(&[(EVENTS, 4, true)]).unwrap();
    guest.host.kick(2);
}

/// The guest takes the event and acts on it, which it shows by a new buffer.
fn hear_of_reset(guest: &mut Guest) {
    assert_eq!(guest.event.take_used().map(|used| used.1), Some(4));
    assert_eq!(guest.event.read(EVENTS, 4), [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    offer_event(guest);
}

#[test]
fn restored_guest_acts_on_the_reset_before_anything_else() {
    let folder = Folder::new("restored");
    let mut guest = Guest::new(&folder);
    save_and_restore(&mut guest);
    let _host = host_asks(&folder);
    guest.expect_silence();
    offer_event(&mut guest);
    // Told, but the guest has not said that it acted: a connection made now would go with the old ones.
    guest.expect_silence();
    hear_of_reset(&mut guest);
    assert_eq!(guest.expect().0.op, Op::Request);
}

#[test]
fn event_buffers_beyond_the_first_are_not_taken_for_an_answer() {
    let folder = Folder::new("many-events");
    let mut guest = Guest::new(&folder);
    for _ in 0..3 {
        offer_event(&mut guest);
    }
    guest.control.reset_transport().unwrap();
    let _host = host_asks(&folder);
    guest.expect_silence();
    guest.host.kick(2);
    guest.expect_silence();
    assert_eq!(guest.event.used_idx(), 1);
    hear_of_reset(&mut guest);
    assert_eq!(guest.expect().0.op, Op::Request);
    // The buffers that were only looked at serve the next reset.
    guest.control.reset_transport().unwrap();
    guest.turn();
    assert_eq!(guest.event.used_idx(), 2);
}

#[test]
fn kick_for_the_answer_is_asked_for_with_event_idx() {
    let folder = Folder::new("event-idx");
    let mut guest = Guest::new(&folder);
    guest.host.reset();
    guest.begin_driver();
    let layout = guest.event.layout();
    guest.host.stop_ring(2);
    assert!(guest.host.set_features(RING_FEATURES | VIRTIO_F_EVENT_IDX));
    guest.host.start_ring(RingStart { queue: 2, layout, next_avail: 0, kick: None }).unwrap();
    for _ in 0..3 {
        offer_event(&mut guest);
    }
    guest.control.reset_transport().unwrap();
    guest.turn();
    let avail_event: u16 =
        guest.event.ram().read_obj(GuestAddress(layout.used_ring + 4 + 8 * u64::from(layout.size))).unwrap();
    assert_eq!(avail_event, 3, "the driver kicks for its fourth buffer");
}

#[test]
fn event_buffer_too_small_comes_back_empty() {
    let folder = Folder::new("small-event");
    let mut guest = Guest::new(&folder);
    guest.control.reset_transport().unwrap();
    guest.turn();
    guest.event.offer(&[(EVENTS, 3, true)]).unwrap();
    guest.event.offer(&[(EVENTS, 4, false)]).unwrap();
    guest.host.kick(2);
    assert_eq!(guest.event.take_used().map(|used| used.1), Some(0));
    assert_eq!(guest.event.take_used().map(|used| used.1), Some(0));
    offer_event(&mut guest);
    hear_of_reset(&mut guest);
    assert!(guest.host.fault().is_none());
}

#[test]
fn reset_on_demand_ends_connections_and_keeps_listeners() {
    let folder = Folder::new("on-demand");
    let mut guest = Guest::new(&folder);
    let mut old = from_guest(&mut guest, &folder);
    guest.send(data(b"last words"), b"last words");
    guest.kick();
    guest.control.reset_transport().unwrap();
    guest.turn();
    let mut last = Vec::new();
    old.read_to_end(&mut last).unwrap();
    assert_eq!(last, b"last words");
    assert_eq!(guest.open_streams(), 0);
    offer_event(&mut guest);
    hear_of_reset(&mut guest);
    let _host = host_asks(&folder);
    assert_eq!(guest.expect().0.op, Op::Request);
}

#[test]
fn reset_on_demand_without_an_event_queue_resets_each_connection() {
    let folder = Folder::new("no-event-queue");
    let mut guest = Guest::new(&folder);
    let mut old = from_guest(&mut guest, &folder);
    guest.host.stop_ring(2);
    guest.control.reset_transport().unwrap();
    guest.turn();
    assert_eq!(guest.expect().0.op, Op::Reset);
    assert_eq!(old.read(&mut [0; 1]).unwrap(), 0);
    let _host = host_asks(&folder);
    assert_eq!(guest.expect().0.op, Op::Request);
}

#[test]
fn new_driver_that_was_not_told_is_told_again() {
    let folder = Folder::new("told-again");
    let mut guest = Guest::new(&folder);
    offer_event(&mut guest);
    guest.control.reset_transport().unwrap();
    guest.turn();
    assert_eq!(guest.event.used_idx(), 1);
    for queue in 0..3 {
        guest.host.stop_ring(queue);
    }
    guest.begin_driver();
    offer_event(&mut guest);
    hear_of_reset(&mut guest);
    let _host = host_asks(&folder);
    assert_eq!(guest.expect().0.op, Op::Request);
}

/// Class: vsock deaf after a bare pause and resume.
#[test]
fn pause_and_resume_lose_neither_direction() {
    let folder = Folder::new("pause");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    guest.host.pause();
    host.write_all(b"while paused").unwrap();
    guest.send(data(b"from the guest"), b"from the guest");
    guest.kick();
    let _asks = host_asks(&folder);
    while guest.turn() {}
    assert_eq!(guest.take(), None, "a paused device touches no guest memory");
    guest.host.unpause();
    let mut heard = [0; 14];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"from the guest");
    let mut got = Vec::new();
    while got.len() < 2 {
        let (header, bytes) = guest.expect();
        if header.op != Op::CreditUpdate {
            got.push((header.op, bytes));
        }
    }
    assert!(got.contains(&(Op::ReadWrite, b"while paused".to_vec())));
    assert!(got.contains(&(Op::Request, Vec::new())));
}

/// Class: packets in flight from the guest when it is saved.
#[test]
fn packets_in_the_ring_when_saved_are_answered_after_the_reset_and_not_before() {
    let folder = Folder::new("in-flight");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    guest.host.pause();
    guest.send(data(b"late"), b"late");
    let used = guest.tx.used_idx();
    save_and_restore(&mut guest);
    guest.host.unpause();
    while guest.turn() {}
    assert_eq!(guest.tx.used_idx(), used, "left in the ring until the guest knows of the reset");
    offer_event(&mut guest);
    hear_of_reset(&mut guest);
    let (reset, _) = guest.expect();
    assert_eq!((reset.op, reset.dst_port), (Op::Reset, GUEST_PORT));
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0, "the old connection ended without it");
}

/// Class: local ports used again after a restore.
#[test]
fn host_ports_go_on_after_a_restore() {
    let folder = Folder::new("ports");
    let mut guest = Guest::new(&folder);
    let _first = host_asks(&folder);
    let before = guest.expect().0.src_port;
    save_and_restore(&mut guest);
    offer_event(&mut guest);
    hear_of_reset(&mut guest);
    let _second = host_asks(&folder);
    assert_ne!(guest.expect().0.src_port, before);
}

/// Class: a descriptor that stays readable and spins.
#[test]
fn stalled_streams_cost_no_wake_ups() {
    let folder = Folder::new("spin");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    guest.send(Header { buf_alloc: 4, ..packet(Op::CreditUpdate, PORT, GUEST_PORT) }, &[]);
    guest.kick();
    host.write_all(&[7; 4096]).unwrap();
    guest.refill();
    guest.rest();
    for _ in 0..10 {
        assert!(!guest.turn(), "the device woke up for a stream that cannot move");
    }
    // Nor does one that the guest has half closed.
    guest.send(Header { flags: SHUTDOWN_SEND, ..packet(Op::Shutdown, PORT, GUEST_PORT) }, &[]);
    guest.kick();
    guest.rest();
    for _ in 0..10 {
        assert!(!guest.turn(), "the device woke up for a half-closed stream");
    }
    // Nor does one whose host program is gone while the guest still has data to take.
    drop(host);
    guest.rest();
    for _ in 0..10 {
        assert!(!guest.turn());
    }
}

#[test]
fn host_programs_wake_the_device_only_with_news() {
    let folder = Folder::new("news");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    // That there is room again is no news while everything has gone.
    guest.send(data(&[7; 4096]), &[7; 4096]);
    guest.kick();
    guest.rest();
    host.read_exact(&mut [0; 4096]).unwrap();
    assert!(!guest.turn(), "the device woke up for a host program that read");
    // That there is more to read is none while the guest takes nothing: once, and no more.
    guest.send(Header { buf_alloc: 4, ..packet(Op::CreditUpdate, PORT, GUEST_PORT) }, &[]);
    guest.kick();
    for _ in 0..3 {
        host.write_all(&[7; 100]).unwrap();
        guest.refill();
        guest.rest();
    }
    for _ in 0..10 {
        host.write_all(&[7; 100]).unwrap();
        assert!(!guest.turn(), "the device woke up for a host program that wrote");
    }
    // When the guest has room again it gets all of it, and what is written after that.
    while guest.take().is_some() {}
    guest.send(packet(Op::CreditUpdate, PORT, GUEST_PORT), &[]);
    guest.kick();
    let mut got = 4;
    while got < 1300 {
        got += guest.expect().1.len();
    }
    guest.expect_silence();
    host.write_all(b"later").unwrap();
    assert_eq!(guest.expect().1, b"later");
}

#[test]
fn packets_taken_are_told_of_together_soon_and_before_a_standstill() {
    let folder = Folder::new("together");
    let mut guest = Guest::new(&folder);
    let _host = from_guest(&mut guest, &folder);
    guest.rest();
    guest.notifier.take();
    let told = |guest: &Guest| guest.notifier.take().contains(&Notification::Queue(1));
    let send = |guest: &mut Guest| {
        guest.send(data(b"data"), b"data");
        guest.kick();
    };
    // Soon: without another word of anybody.
    send(&mut guest);
    assert!(guest.host.turn(60_000).unwrap());
    assert!(told(&guest));
    // Together: at the latest when half of the ring's descriptors are to be told of, two or more a packet.
    let mut sent = 0;
    while !told(&guest) {
        send(&mut guest);
        sent += 1;
    }
    assert!(sent > TX_SIZE / 8 && sent <= TX_SIZE / 4, "{sent} packets");
    // Before a standstill.
    send(&mut guest);
    guest.host.pause();
    assert!(told(&guest));
}
