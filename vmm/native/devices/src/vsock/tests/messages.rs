//! Sockets of type SEQPACKET: whole messages both ways, and what both sides may say that is not true.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use strato_virtio::RingStart;
use strato_virtio::mock::SeededRandom;

use super::super::backend::{beside, connect, listen};
use super::super::connection::MAX_MESSAGE;
use super::super::queue::{
    F_SEQPACKET, SEQ_EOM, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, SocketType, TYPE_SEQPACKET,
};
use super::super::{Header, Op};
use super::guest::{Folder, Guest, packet, uds, uds_for};

const PORT: u32 = 1234;
const GUEST_PORT: u32 = 5000;

/// The flag of a packet that the sender marked with MSG_EOR as well.
const SEQ_EOR: u32 = 2;

fn limited(socket: UnixStream) -> UnixStream {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

fn listener(path: &Path) -> UnixListener {
    let listener = listen(path, SocketType::Seqpacket).unwrap();
    listener.set_nonblocking(false).unwrap();
    listener
}

/// A packet for a connection that carries messages.
fn message(op: Op, host_port: u32) -> Header {
    Header { socket_type: TYPE_SEQPACKET, ..packet(op, host_port, GUEST_PORT) }
}

/// A connection that the guest made.
fn from_guest(guest: &mut Guest, folder: &Folder) -> UnixStream {
    let listener = listener(&uds_for(folder, PORT));
    guest.send(message(Op::Request, PORT), &[]);
    guest.kick();
    let (response, _) = guest.expect();
    assert_eq!((response.op, response.socket_type), (Op::Response, TYPE_SEQPACKET));
    assert_eq!(response.buf_alloc, MAX_MESSAGE as u32);
    limited(listener.accept().unwrap().0)
}

/// The guest sends a packet of data.
fn send(guest: &mut Guest, data: &[u8], flags: u32) {
    assert!(guest.send(Header { len: data.len() as u32, flags, ..message(Op::ReadWrite, PORT) }, data));
    guest.kick();
}

fn shutdown(guest: &mut Guest, flags: u32) {
    guest.send(Header { flags, ..message(Op::Shutdown, PORT) }, &[]);
    guest.kick();
}

/// The host program sends one message, perhaps an empty one.
fn say(host: &mut UnixStream, message: &[u8]) {
    assert_eq!(host.write(message).unwrap(), message.len());
}

/// The host program takes one message.
fn receive(host: &mut UnixStream) -> Vec<u8> {
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    let len = host.read(&mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

/// The guest gets one message, in however many packets.
fn expect_message(guest: &mut Guest) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let (header, data) = guest.expect();
        if header.op == Op::CreditUpdate {
            continue;
        }
        assert_eq!((header.op, header.socket_type), (Op::ReadWrite, TYPE_SEQPACKET));
        bytes.extend(data);
        if header.flags & SEQ_EOM != 0 {
            return bytes;
        }
    }
}

#[test]
fn messages_arrive_whole_and_apart_both_ways() {
    let folder = Folder::new("whole");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    send(&mut guest, b"one", SEQ_EOM);
    send(&mut guest, b"", SEQ_EOM);
    send(&mut guest, b"two, in ", 0);
    send(&mut guest, b"pieces", SEQ_EOM | SEQ_EOR);
    assert_eq!(receive(&mut host), b"one");
    assert_eq!(receive(&mut host), b"");
    assert_eq!(receive(&mut host), b"two, in pieces");
    for text in ["three", "", "four"] {
        say(&mut host, text.as_bytes());
    }
    let long: Vec<u8> = (0..MAX_MESSAGE).map(|at| (at * 7 + at / 256) as u8).collect();
    say(&mut host, &long);
    assert_eq!(expect_message(&mut guest), b"three");
    assert_eq!(expect_message(&mut guest), b"");
    assert_eq!(expect_message(&mut guest), b"four");
    assert_eq!(expect_message(&mut guest), long);
}

#[test]
fn host_program_connects_with_a_message() {
    let folder = Folder::new("host-asks");
    let mut guest = Guest::new(&folder);
    let path = beside(&uds(&folder), "seq");
    let mut host = limited(connect(&path, SocketType::Seqpacket).unwrap());
    host.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).unwrap();
    host.write_all(b"early").unwrap();
    let (request, _) = guest.expect();
    assert_eq!((request.op, request.socket_type), (Op::Request, TYPE_SEQPACKET));
    guest.send(message(Op::Response, request.src_port), &[]);
    guest.kick();
    assert_eq!(receive(&mut host), format!("OK {}\n", request.src_port).into_bytes());
    assert_eq!(expect_message(&mut guest), b"early");
    for line in ["CONNECT 5000", "CONNECT 5000\nCONNECT 5000\n", "hello\n"] {
        let mut host = limited(connect(&path, SocketType::Seqpacket).unwrap());
        host.write_all(line.as_bytes()).unwrap();
        guest.expect_silence();
        assert_eq!(host.read(&mut [0; 9]).unwrap(), 0, "{line}");
    }
    // Each kind of socket has a name of its own.
    assert!(connect(&path, SocketType::Stream).is_err());
    assert!(connect(&uds(&folder), SocketType::Seqpacket).is_err());
}

#[test]
fn messages_that_a_slow_host_program_leaves_are_kept_apart() {
    let folder = Folder::new("slow");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    let mut random = SeededRandom::new(11);
    let (mut sent, mut fwd_cnt, mut told) = (VecDeque::new(), 0u32, 0u32);
    for number in 0..600u32 {
        let len = [0, 1, 100, 5000, 60_000][random.below(5) as usize];
        // As a driver does: never beyond the window.
        while fwd_cnt + len - told > MAX_MESSAGE as u32 {
            let expected: Vec<u8> = sent.pop_front().unwrap();
            assert_eq!(receive(&mut host), expected);
            guest.refill();
            while guest.turn() {}
            guest.send(message(Op::CreditRequest, PORT), &[]);
            guest.kick();
            told = guest.expect().0.fwd_cnt;
        }
        let bytes = vec![number as u8; len as usize];
        let cut = bytes.len() / 3;
        send(&mut guest, &bytes[..cut], 0);
        send(&mut guest, &bytes[cut..], SEQ_EOM);
        while guest.take().is_some() {}
        sent.push_back(bytes);
        fwd_cnt += len;
    }
    shutdown(&mut guest, SHUTDOWN_SEND);
    while let Some(expected) = sent.pop_front() {
        assert_eq!(receive(&mut host), expected);
        while guest.turn() {}
    }
    assert_eq!(receive(&mut host), b"", "the end");
}

#[test]
fn message_waits_for_room_and_buffers_piece_by_piece() {
    let folder = Folder::new("pieces");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    let room = |guest: &mut Guest, fwd_cnt| {
        guest.send(Header { buf_alloc: 30_000, fwd_cnt, ..message(Op::CreditUpdate, PORT) }, &[]);
        guest.kick();
    };
    room(&mut guest, 0);
    let first = vec![1; 25_000];
    host.write_all(&first).unwrap();
    assert_eq!(expect_message(&mut guest), first);
    let sent: Vec<u8> = (0..30_000u32).map(|at| (at * 3) as u8).collect();
    host.write_all(&sent).unwrap();
    // The guest's program takes the first message little by little, and then the second one, and its driver never
    // has many buffers.
    let (mut got, mut taken) = (Vec::<u8>::new(), 0);
    guest.rx_len = 44 + 1000;
    while got.len() < sent.len() {
        guest.refill_to(3);
        while guest.turn() {}
        while let Some((header, data)) = guest.take() {
            got.extend(&data);
            let ends = header.op == Op::ReadWrite && got.len() == sent.len();
            assert_eq!(header.flags & SEQ_EOM != 0, ends);
            assert!(got.len() + first.len() <= taken as usize + 30_000, "beyond the guest's window");
        }
        taken += 700;
        room(&mut guest, taken);
    }
    assert_eq!(got, sent);
    host.write_all(b"next").unwrap();
    room(&mut guest, 55_000);
    assert_eq!(expect_message(&mut guest), b"next");
}

#[test]
fn message_as_long_as_the_window_can_follow_any_other() {
    let folder = Folder::new("credit");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    // Linux sends what there is room for, and waits with the rest for the room that the first byte took.
    send(&mut guest, &[1], SEQ_EOM);
    let long = vec![2; MAX_MESSAGE];
    send(&mut guest, &long[1..], 0);
    let (header, _) = guest.expect();
    assert_eq!((header.op, header.fwd_cnt), (Op::CreditUpdate, 1));
    send(&mut guest, &long[..1], SEQ_EOM);
    assert_eq!(receive(&mut host), [1]);
    assert_eq!(receive(&mut host), long);
}

#[test]
fn both_ends_close_one_direction_after_the_other() {
    let folder = Folder::new("half");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    host.write_all(b"last").unwrap();
    // An empty message that others follow is not the end, even when the end is known.
    say(&mut host, b"");
    host.write_all(b"very last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(expect_message(&mut guest), b"last");
    assert_eq!(expect_message(&mut guest), b"");
    assert_eq!(expect_message(&mut guest), b"very last");
    let (header, _) = guest.expect();
    assert_eq!((header.op, header.flags, header.socket_type), (Op::Shutdown, SHUTDOWN_SEND, TYPE_SEQPACKET));
    send(&mut guest, b"answer", SEQ_EOM);
    // A message that is not ended before the end is none.
    send(&mut guest, b"half a mess", 0);
    shutdown(&mut guest, SHUTDOWN_BOTH);
    assert_eq!(receive(&mut host), b"answer");
    assert_eq!(receive(&mut host), b"", "the end");
    assert_eq!(guest.expect_op(), Op::Reset);
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn what_the_guest_sent_before_a_reset_is_delivered_in_whole_messages() {
    let folder = Folder::new("before-reset");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    // More messages than a unix socket takes.
    for number in 0..2000u32 {
        assert!(
            guest.send(
                Header { len: 4, flags: SEQ_EOM, ..message(Op::ReadWrite, PORT) },
                &number.to_le_bytes()
            )
        );
        guest.kick();
    }
    send(&mut guest, b"part", 0);
    guest.send(message(Op::Reset, PORT), &[]);
    guest.kick();
    for number in 0..2000u32 {
        assert_eq!(receive(&mut host), number.to_le_bytes());
        while guest.turn() {}
    }
    assert_eq!(receive(&mut host), b"", "the end");
    while let Some((header, _)) = guest.take() {
        assert_eq!(header.op, Op::CreditUpdate, "a reset is not answered");
    }
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn types_do_not_mix() {
    let folder = Folder::new("types");
    let mut guest = Guest::new(&folder);
    let _streams = UnixListener::bind(uds_for(&folder, 1)).unwrap();
    let _messages = listener(&uds_for(&folder, 2));
    for request in [message(Op::Request, 1), packet(Op::Request, 2, GUEST_PORT)] {
        guest.send(request, &[]);
        guest.kick();
        let (answer, _) = guest.expect();
        assert_eq!((answer.op, answer.socket_type), (Op::Reset, request.socket_type));
    }
    // A packet of the other type belongs to no connection, and the one with its ports goes on.
    let mut host = from_guest(&mut guest, &folder);
    for op in [Op::ReadWrite, Op::Shutdown, Op::Request, Op::CreditRequest] {
        guest.send(packet(op, PORT, GUEST_PORT), &[]);
        guest.kick();
        assert_eq!(guest.expect().0.op, Op::Reset);
    }
    guest.send(packet(Op::Reset, PORT, GUEST_PORT), &[]);
    guest.kick();
    guest.expect_silence();
    send(&mut guest, b"unharmed", SEQ_EOM);
    assert_eq!(receive(&mut host), b"unharmed");
}

#[test]
fn driver_that_does_not_know_messages_sees_none() {
    let folder = Folder::new("unknown");
    let mut guest = Guest::new(&folder);
    guest.host.reset();
    guest.features &= !F_SEQPACKET;
    guest.begin_driver();
    let _messages = listener(&uds_for(&folder, PORT));
    guest.send(message(Op::Request, PORT), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Reset);
    let mut host = limited(connect(&beside(&uds(&folder), "seq"), SocketType::Seqpacket).unwrap());
    host.write_all(b"CONNECT 5000\n").unwrap();
    guest.expect_silence();
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn messages_that_can_never_arrive_end_the_connection() {
    let folder = Folder::new("never");
    let mut guest = Guest::new(&folder);
    let reset = |guest: &mut Guest| {
        assert_eq!(guest.expect_op(), Op::Reset);
        assert_eq!(guest.open_streams(), 0);
        std::fs::remove_file(uds_for(&folder, PORT)).unwrap();
    };
    // One that the guest does not end within its window.
    let mut host = from_guest(&mut guest, &folder);
    for _ in 0..3 {
        guest.send(Header { len: 30_000, ..message(Op::ReadWrite, PORT) }, &[1; 30_000]);
        guest.kick();
    }
    reset(&mut guest);
    assert_eq!(receive(&mut host), b"", "nothing of it was passed on");
    // One of the host program that is longer than any may be.
    let mut host = from_guest(&mut guest, &folder);
    host.write_all(&vec![1; MAX_MESSAGE + 1]).unwrap();
    reset(&mut guest);
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // One that does not fit in this guest's window.
    let mut host = from_guest(&mut guest, &folder);
    guest.send(Header { buf_alloc: 1000, ..message(Op::CreditUpdate, PORT) }, &[]);
    guest.kick();
    host.write_all(&[1; 1001]).unwrap();
    reset(&mut guest);
}

#[test]
fn empty_messages_without_end_and_too_many_connections_are_refused() {
    let folder = Folder::new("many");
    let mut guest = Guest::new(&folder);
    let host = from_guest(&mut guest, &folder);
    let mut sent = 0;
    while guest.take().is_none() {
        assert!(sent < 2 * MAX_MESSAGE, "the device stores them without end");
        send(&mut guest, b"", SEQ_EOM);
        guest.refill();
        while guest.turn() {}
        sent += 1;
    }
    drop(host);
    std::fs::remove_file(uds_for(&folder, PORT)).unwrap();
    let _messages = listener(&uds_for(&folder, PORT));
    let mut refused = 0;
    for port in 0..300 {
        guest.send(Header { src_port: port, ..message(Op::Request, PORT) }, &[]);
        guest.kick();
        refused += u32::from(guest.expect_op() == Op::Reset);
    }
    assert_eq!(refused, 300 - 256);
    // Those that go make room for others.
    guest.send(Header { src_port: 0, ..message(Op::Reset, PORT) }, &[]);
    guest.send(Header { src_port: 299, ..message(Op::Request, PORT) }, &[]);
    guest.kick();
    assert_eq!(guest.expect_op(), Op::Response);
}

#[test]
fn guest_that_takes_no_more_and_host_program_that_is_gone_end_what_is_on_its_way() {
    let folder = Folder::new("gone");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    host.write_all(&[5; 60_000]).unwrap();
    guest.rx_len = 44 + 100;
    guest.refill_to(2);
    while guest.turn() {}
    // In the middle of a message.
    shutdown(&mut guest, SHUTDOWN_RECEIVE);
    while guest.take().is_some() {}
    guest.expect_silence();
    drop(host);
    assert_eq!(guest.expect_op(), Op::Shutdown);
    send(&mut guest, b"to nobody", SEQ_EOM);
    shutdown(&mut guest, SHUTDOWN_BOTH);
    assert_eq!(guest.expect_op(), Op::Reset);
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn restored_device_still_carries_messages() {
    let folder = Folder::new("restored");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    let saved = guest.host.save();
    for (queue, ring) in guest.host.restore(&saved).unwrap().into_iter().enumerate() {
        let (layout, next_avail) = ring.unwrap();
        let start = RingStart { queue: queue as u16, layout, next_avail, kick: None };
        guest.host.start_ring(start).unwrap();
    }
    assert_eq!(host.read(&mut [0]).unwrap(), 0, "connections are not saved");
    for _ in 0..2 {
        guest.event.offer(&[(0x3_0000, 4, true)]).unwrap();
        guest.host.kick(2);
    }
    std::fs::remove_file(uds_for(&folder, PORT)).unwrap();
    let mut host = from_guest(&mut guest, &folder);
    send(&mut guest, b"after", SEQ_EOM);
    assert_eq!(receive(&mut host), b"after");
}
