//! What a guest says that is not true, and seeded noise.
#![expect(unsafe_code, reason = "a backlog of none")]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use strato_virtio::mock::{Descriptor, SeededRandom, WRITE};

use super::super::backend::{beside, connect, listen};
use super::super::device::DIAL_AGAIN;
use super::super::queue::{HEADER_LEN, SocketType};
use super::super::{Header, Op};
use super::guest::{Folder, Guest, packet, uds, uds_for};
use super::heap::held;

const PORT: u32 = 1234;

fn answer(header: Header, data: &[u8]) -> Option<Op> {
    let folder = Folder::new("lie");
    let mut guest = Guest::new(&folder);
    let _listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    guest.send(packet(Op::Request, PORT, 1), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
    assert!(guest.send(header, data));
    guest.kick();
    assert!(guest.host.fault().is_none());
    guest.refill();
    while guest.turn() {}
    guest.take().map(|(header, _)| header.op)
}

#[test]
fn packets_that_make_no_sense_are_answered_with_a_reset() {
    let data = Header { len: 4, ..packet(Op::ReadWrite, PORT, 1) };
    assert_eq!(answer(Header { dst_cid: 7, ..data }, b"data"), Some(Op::Reset), "not for the host");
    assert_eq!(answer(Header { socket_type: 9, ..data }, b"data"), Some(Op::Reset), "unknown type");
    assert_eq!(answer(Header { op: Op::Unknown(99), ..data }, b"data"), Some(Op::Reset), "unknown operation");
    assert_eq!(answer(Header { len: 5, ..data }, b"data"), Some(Op::Reset), "longer than its buffers");
    assert_eq!(answer(Header { len: u32::MAX, ..data }, b"data"), Some(Op::Reset), "absurdly long");
    assert_eq!(answer(Header { src_port: 2, ..data }, b"data"), Some(Op::Reset), "no such connection");
    assert_eq!(answer(packet(Op::Response, PORT, 1), &[]), Some(Op::Reset), "answer to no question");
    assert_eq!(answer(packet(Op::Request, PORT, 1), &[]), Some(Op::Reset), "ports in use");
}

#[test]
fn packets_in_another_name_are_dropped() {
    let data = Header { len: 4, ..packet(Op::ReadWrite, PORT, 1) };
    assert_eq!(answer(Header { src_cid: 4, ..data }, b"data"), None);
    assert_eq!(answer(Header { src_port: 2, op: Op::Reset, ..data }, &[]), None, "resets are never answered");
}

#[test]
fn data_after_the_end_and_beyond_the_window_resets_the_connection() {
    let folder = Folder::new("window-lie");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    for flags in [2, 0] {
        guest.send(packet(Op::Request, PORT, 1), &[]);
        guest.kick();
        assert_eq!(guest.expect().0.op, Op::Response);
        let _host = listener.accept().unwrap();
        guest.send(Header { flags, ..packet(Op::Shutdown, PORT, 1) }, &[]);
        let mut reset = false;
        for _ in 0..40 {
            guest.send(Header { len: 65536, ..packet(Op::ReadWrite, PORT, 1) }, &[0; 65536]);
            guest.kick();
            guest.refill();
            while guest.turn() {}
            reset |= std::iter::from_fn(|| guest.take()).any(|(header, _)| header.op == Op::Reset);
            if reset {
                break;
            }
        }
        assert!(reset);
        assert_eq!(guest.open_streams(), 0);
    }
}

#[test]
fn short_packets_are_dropped() {
    let folder = Folder::new("short");
    let mut guest = Guest::new(&folder);
    for len in 0..HEADER_LEN {
        guest.tx.write(0x3_0000, &[0xff; HEADER_LEN]);
        assert!(guest.send_raw(&vec![0xff; len.max(1)], &[]));
        guest.kick();
    }
    assert!(guest.host.fault().is_none());
    guest.expect_silence();
}

#[test]
fn receive_buffers_too_small_for_a_header_come_back_empty() {
    let folder = Folder::new("small-rx");
    let mut guest = Guest::new(&folder);
    guest.rx_len = 44;
    guest.refill_to(8);
    guest.send(packet(Op::Request, 99, 1), &[]);
    guest.kick();
    while guest.turn() {}
    assert_eq!(guest.take(), None);
    assert!(guest.host.fault().is_none());
    guest.rx_len = 45;
    assert_eq!(guest.expect().0.op, Op::Reset);
}

#[test]
fn receive_buffers_of_all_sizes_and_shapes_deliver_every_byte() {
    let folder = Folder::new("shapes");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    guest.send(packet(Op::Request, PORT, 1), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
    let mut host = listener.accept().unwrap().0;
    let sent: Vec<u8> = (0..150_000u32).map(|n| (n * 7) as u8).collect();
    host.write_all(&sent).unwrap();
    let mut random = SeededRandom::new(3);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        // Never more out than the mixture needs, so that sizes alternate within one read.
        for out in 1..20 {
            guest.rx_len = [20, 44, 45, 100, 4096, 9000][random.below(6) as usize];
            guest.refill_to(out);
        }
        while guest.turn() {}
        while let Some((header, data)) = guest.take() {
            assert_eq!(header.op, Op::ReadWrite);
            got.extend_from_slice(&data);
        }
    }
    assert_eq!(got, sent);
    assert!(guest.host.fault().is_none());
}

#[test]
fn resets_that_the_guest_does_not_take_hold_its_own_packets_up() {
    let folder = Folder::new("replies");
    let mut guest = Guest::new(&folder);
    let mut sent = 0;
    while guest.send(packet(Op::Request, 99, sent), &[]) {
        sent += 1;
        guest.kick();
        assert!(sent < 10_000);
    }
    assert!(sent >= 256, "{sent}");
    let mut resets = 0;
    while resets < sent {
        assert_eq!(guest.expect().0.op, Op::Reset);
        resets += 1;
    }
}

/// A host program whose backlog is full.
fn busy(folder: &Folder, port: u32) -> (UnixListener, UnixStream) {
    let listener = UnixListener::bind(uds_for(folder, port)).unwrap();
    // SAFETY: a listening socket may be told a new backlog at any time.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let first = connect(&uds_for(folder, port), SocketType::Stream).unwrap();
    (listener, first)
}

/// The guest asks for a connection and takes it back at once.
fn ask_and_take_back(guest: &mut Guest, port: u32) {
    assert!(guest.send(packet(Op::Request, port, 1), &[]));
    assert!(guest.send(packet(Op::Reset, port, 1), &[]));
    guest.kick();
}

/// A device would remember tens of bytes of each.
const MANY: usize = 50_000;
const LITTLE: isize = 64 << 10;

#[test]
fn connections_that_are_taken_back_while_a_backlog_is_full_cost_no_memory() {
    let folder = Folder::new("taken-back");
    let mut guest = Guest::new(&folder);
    let _busy = busy(&folder, PORT);
    let before = held();
    for _ in 0..MANY {
        ask_and_take_back(&mut guest, PORT);
        assert!(held() - before < LITTLE, "{}", held() - before);
    }
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn connections_that_are_taken_back_do_not_hold_up_one_that_waits_for_a_backlog() {
    let folder = Folder::new("asked-again");
    let mut guest = Guest::new(&folder);
    let _busy = busy(&folder, PORT);
    let (other, _first) = busy(&folder, PORT + 1);
    guest.send(packet(Op::Request, PORT + 1, 2), &[]);
    guest.kick();
    other.accept().unwrap();
    let (begun, mut turns) = (Instant::now(), 0);
    // A device that puts its question off at each packet never asks, as long as they come fast enough.
    while guest.take().is_none() {
        ask_and_take_back(&mut guest, PORT);
        guest.refill();
        // Once the time has come, the next turn asks and the one after it answers.
        turns += usize::from(begun.elapsed() > 2 * DIAL_AGAIN);
        assert!(turns < 10, "the host program was not asked again");
        guest.turn();
    }
}

#[test]
fn answers_that_the_guest_does_not_take_cost_no_memory_once_their_connections_are_gone() {
    let folder = Folder::new("untaken");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    // The first of those that wait, as long as the guest has no buffers.
    guest.send(packet(Op::Request, PORT, 2), &[]);
    guest.kick();
    let _first = listener.accept().unwrap();
    let before = held();
    for _ in 0..MANY {
        ask_and_take_back(&mut guest, PORT);
        listener.accept().unwrap();
        assert!(held() - before < LITTLE, "{}", held() - before);
    }
    assert_eq!(guest.open_streams(), 1);
    assert_eq!(guest.expect().0.dst_port, 2);
}

#[test]
fn broken_chain_stops_the_device_until_a_reset() {
    let folder = Folder::new("broken");
    let mut guest = Guest::new(&folder);
    guest.tx.write_descriptor(0, Descriptor { addr: u64::MAX, len: 64, flags: WRITE, next: 0 });
    guest.tx.publish(0);
    guest.host.kick(1);
    assert!(guest.host.fault().is_some());
    guest.refill();
    guest.kick();
    guest.host.reset();
    guest.begin_driver();
    guest.send(packet(Op::Request, 99, 1), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Reset);
}

#[test]
fn headers_survive_a_round_trip() {
    let mut random = SeededRandom::new(1);
    for _ in 0..if cfg!(miri) { 100 } else { 100_000 } {
        let mut raw = [0; HEADER_LEN];
        random.fill(&mut raw);
        assert_eq!(Header::parse(&raw).to_bytes(), raw);
    }
}

/// Random packets, some of them nearly right, on random ports with host programs that come and go: whatever
/// happens, the device neither dies nor forgets to count.
#[test]
fn noise_is_survived() {
    // From the guest, from the host.
    let (mut bytes, mut messages) = ((0, 0), (0, 0));
    for (seed, socket_type) in (0..60).zip([SocketType::Stream, SocketType::Seqpacket].into_iter().cycle()) {
        let folder = Folder::new(&format!("noise-{seed}"));
        let mut guest = Guest::with_limit(&folder, 16);
        let mut random = SeededRandom::new(seed);
        let listeners: Vec<_> =
            (0..3).map(|port| listen(&uds_for(&folder, port), socket_type).unwrap()).collect();
        let path = match socket_type {
            SocketType::Stream => uds(&folder),
            SocketType::Seqpacket => beside(&uds(&folder), "seq"),
        };
        let mut programs: Vec<UnixStream> = Vec::new();
        for _ in 0..600 {
            let mut raw = packet(Op::Request, random.below(4) as u32, random.below(4) as u32).to_bytes();
            raw[28] = socket_type.number() as u8;
            raw[30] = random.below(9) as u8;
            raw[32] = random.below(4) as u8;
            let data = vec![0; random.below(3000) as usize * random.below(2) as usize];
            raw[24..28].copy_from_slice(&(data.len() as u32).to_le_bytes());
            raw[36..40].copy_from_slice(&((random.next_u64() >> random.below(64)) as u32).to_le_bytes());
            if random.below(4) == 0 {
                raw[random.below(44) as usize] ^= 1 << random.below(8);
            }
            guest.send_raw(&raw, &data);
            match random.below(7) {
                0 => programs.extend(listeners.iter().filter_map(|listener| {
                    let (program, _) = listener.accept().ok()?;
                    program.set_nonblocking(true).unwrap();
                    Some(program)
                })),
                1 if !programs.is_empty() => {
                    programs.swap_remove(random.below(programs.len() as u64) as usize);
                }
                2 => {
                    let mut program = connect(&path, socket_type).unwrap();
                    program.write_all(format!("CONNECT {}\n", random.below(4)).as_bytes()).unwrap();
                    program.write_all(b"noise").unwrap();
                    programs.push(program);
                }
                3 => guest.kick(),
                4 => guest.refill_to(random.below(64) as usize),
                5 => {
                    for program in &mut programs {
                        let len = (random.next_u64() >> random.below(64)) as usize % 70_000;
                        // Full, or gone: as good as anything.
                        let _ = program.write(&vec![1; len]);
                        let _ = program.read(&mut [0; 5000]);
                    }
                }
                _ => {
                    guest.turn();
                    while guest.take().is_some() {}
                }
            }
        }
        assert!(guest.host.fault().is_none(), "seed {seed}");
        let said = if socket_type == SocketType::Stream { &mut bytes } else { &mut messages };
        said.0 += guest.metrics.tx_bytes.load(Relaxed);
        said.1 += guest.metrics.rx_bytes.load(Relaxed);
        guest.host.reset();
        drop(programs);
        drop(listeners);
        while guest.turn() {}
        assert!(guest.open_streams() <= 16, "seed {seed}");
    }
    for (from_guest, from_host) in [bytes, messages] {
        assert!(from_guest > 1000 && from_host > 1000, "the noise is silent: {from_guest}, {from_host}");
    }
}
