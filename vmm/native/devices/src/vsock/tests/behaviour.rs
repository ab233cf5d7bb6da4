//! One connection at a time: opening, closing, credit.
#![allow(unsafe_code, reason = "tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use strato_virtio::Notification;

use super::super::queue::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::{Header, Op};
use super::guest::{Folder, Guest, packet, uds, uds_for};

const PORT: u32 = 1234;
const GUEST_PORT: u32 = 5000;

fn limited(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// A connection that the guest made.
fn from_guest(guest: &mut Guest, folder: &Folder) -> UnixStream {
    let listener = UnixListener::bind(uds_for(folder, PORT)).unwrap();
    guest.send(packet(Op::Request, PORT, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
    limited(listener.accept().unwrap().0)
}

/// A connection that a host program made; returns its host port.
fn from_host(guest: &mut Guest, folder: &Folder) -> (UnixStream, u32) {
    let mut stream = limited(UnixStream::connect(uds(folder)).unwrap());
    stream.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).unwrap();
    let (request, _) = guest.expect();
    assert_eq!((request.op, request.dst_port), (Op::Request, GUEST_PORT));
    guest.send(packet(Op::Response, request.src_port, GUEST_PORT), &[]);
    guest.kick();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer.to_vec(), format!("OK {}\n", request.src_port).into_bytes());
    (stream, request.src_port)
}

fn data(guest: &mut Guest, host_port: u32, bytes: &[u8]) {
    let header = Header { len: bytes.len() as u32, ..packet(Op::ReadWrite, host_port, GUEST_PORT) };
    assert!(guest.send(header, bytes));
    guest.kick();
}

fn shutdown(guest: &mut Guest, host_port: u32, flags: u32) {
    guest.send(Header { flags, ..packet(Op::Shutdown, host_port, GUEST_PORT) }, &[]);
    guest.kick();
}

#[test]
fn guest_connects_and_bytes_flow_both_ways() {
    let folder = Folder::new("both-ways");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    data(&mut guest, PORT, b"from the guest");
    let mut got = [0; 14];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (header, bytes) = guest.expect();
    assert_eq!((header.op, bytes.as_slice()), (Op::ReadWrite, &b"from the host"[..]));
    assert_eq!((header.src_port, header.dst_port), (PORT, GUEST_PORT));
    assert!(guest.notifier.take().contains(&Notification::Queue(0)));
}

#[test]
fn host_connects_and_data_behind_the_first_line_is_not_lost() {
    let folder = Folder::new("pipelined");
    let mut guest = Guest::new(&folder);
    let mut host = limited(UnixStream::connect(uds(&folder)).unwrap());
    host.write_all(b"CONNECT 5000\nearly").unwrap();
    let (request, _) = guest.expect();
    guest.send(packet(Op::Response, request.src_port, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(guest.expect().1, b"early");
}

#[test]
fn first_line_may_come_in_pieces() {
    let folder = Folder::new("pieces");
    let mut guest = Guest::new(&folder);
    let mut host = limited(UnixStream::connect(uds(&folder)).unwrap());
    for piece in ["CON", "NECT 50", "00"] {
        host.write_all(piece.as_bytes()).unwrap();
        guest.expect_silence();
    }
    host.write_all(b"\n").unwrap();
    assert_eq!(guest.expect().0.dst_port, GUEST_PORT);
}

#[test]
fn bad_first_line_closes_the_host_program_only() {
    let folder = Folder::new("bad-line");
    let mut guest = Guest::new(&folder);
    let mut bad = limited(UnixStream::connect(uds(&folder)).unwrap());
    bad.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    while guest.turn() {}
    let closed = bad.read(&mut [0; 1]);
    assert!(matches!(closed, Ok(0)) || closed.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    from_host(&mut guest, &folder);
}

#[test]
fn guest_refuses_and_host_program_sees_the_end() {
    let folder = Folder::new("refused");
    let mut guest = Guest::new(&folder);
    let mut host = limited(UnixStream::connect(uds(&folder)).unwrap());
    host.write_all(b"CONNECT 5000\n").unwrap();
    let (request, _) = guest.expect();
    guest.send(packet(Op::Reset, request.src_port, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn nobody_listens_is_a_reset() {
    let folder = Folder::new("nobody");
    let mut guest = Guest::new(&folder);
    guest.send(packet(Op::Request, 99, GUEST_PORT), &[]);
    guest.kick();
    let (header, _) = guest.expect();
    assert_eq!((header.op, header.src_port, header.dst_port), (Op::Reset, 99, GUEST_PORT));
}

#[test]
fn host_request_waits_for_a_guest_that_boots() {
    let folder = Folder::new("boots");
    let mut guest = Guest::new(&folder);
    guest.host.reset();
    let mut host = limited(UnixStream::connect(uds(&folder)).unwrap());
    host.write_all(b"CONNECT 5000\n").unwrap();
    while guest.turn() {}
    guest.begin_driver();
    assert_eq!(guest.expect().0.op, Op::Request);
}

#[test]
fn silent_guest_loses_the_host_program_when_patience_ends() {
    let folder = Folder::new("silent");
    let mut guest = Guest::with(&folder, 10, Duration::from_millis(100));
    let mut host = limited(UnixStream::connect(uds(&folder)).unwrap());
    host.write_all(b"CONNECT 5000\n").unwrap();
    assert_eq!(guest.expect().0.op, Op::Request);
    assert_eq!(guest.expect().0.op, Op::Reset);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn guest_half_close_leaves_the_other_direction_open() {
    let folder = Folder::new("half-guest");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    data(&mut guest, PORT, b"question");
    shutdown(&mut guest, PORT, SHUTDOWN_SEND);
    let mut question = Vec::new();
    host.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.expect().1, b"answer");
    drop(host);
    let (header, _) = guest.expect();
    assert_eq!((header.op, header.flags), (Op::Shutdown, SHUTDOWN_BOTH));
    guest.send(packet(Op::Reset, PORT, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn host_half_close_leaves_the_other_direction_open() {
    let folder = Folder::new("half-host");
    let mut guest = Guest::new(&folder);
    let (mut host, port) = from_host(&mut guest, &folder);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect().1, b"question");
    let (header, _) = guest.expect();
    assert_eq!((header.op, header.flags), (Op::Shutdown, SHUTDOWN_SEND));
    data(&mut guest, port, b"answer");
    shutdown(&mut guest, port, SHUTDOWN_BOTH);
    let mut answer = Vec::new();
    host.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(guest.expect().0.op, Op::Reset);
    assert_eq!(guest.open_streams(), 0);
}

#[test]
fn guest_that_receives_no_more_makes_the_host_program_fail() {
    let folder = Folder::new("deaf-guest");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    shutdown(&mut guest, PORT, SHUTDOWN_RECEIVE);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    data(&mut guest, PORT, b"still talking");
    let mut got = [0; 13];
    host.read_exact(&mut got).unwrap();
}

#[test]
fn what_the_host_program_wrote_before_it_closed_arrives_before_the_close() {
    let folder = Folder::new("host-closes");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    host.set_nonblocking(true).unwrap();
    let written = host.write(&sent).unwrap();
    drop(host);
    // The guest writes into the closed socket before it has read anything.
    data(&mut guest, PORT, b"too late");
    let mut got = Vec::new();
    loop {
        let (header, bytes) = guest.expect();
        got.extend_from_slice(&bytes);
        match header.op {
            Op::ReadWrite | Op::CreditUpdate => {}
            Op::Shutdown if header.flags == SHUTDOWN_RECEIVE => {}
            Op::Shutdown | Op::Reset => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, sent[..written]);
}

#[test]
fn what_the_guest_sent_before_a_reset_is_delivered_and_its_ports_are_free_at_once() {
    let folder = Folder::new("guest-resets");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    guest.send(packet(Op::Request, PORT, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
    let mut host = limited(listener.accept().unwrap().0);
    // More than the unix socket takes, so that some of it is stored.
    let chunk = [7; 60_000];
    for _ in 0..4 {
        data(&mut guest, PORT, &chunk);
    }
    guest.send(packet(Op::Reset, PORT, GUEST_PORT), &[]);
    guest.send(packet(Op::Request, PORT, GUEST_PORT), &[]);
    guest.kick();
    assert_eq!(guest.expect_op(), Op::Response, "the port pair is free");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).map(|_| all)
    });
    while !reader.is_finished() {
        guest.host.turn(10).unwrap();
    }
    assert_eq!(reader.join().unwrap().unwrap(), [7; 240_000]);
    assert_eq!(guest.open_streams(), 1);
}

#[test]
fn slow_host_program_gets_no_more_than_the_window_and_everything_in_the_end() {
    let folder = Folder::new("window");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    let window = {
        guest.send(packet(Op::CreditRequest, PORT, GUEST_PORT), &[]);
        guest.kick();
        guest.expect().0.buf_alloc
    };
    let mut sent = 0;
    let mut fwd_cnt = 0;
    while sent - fwd_cnt < window {
        let len = (window - (sent - fwd_cnt)).min(50_000);
        data(&mut guest, PORT, &vec![sent as u8; len as usize]);
        sent += len;
        guest.refill();
        while guest.turn() {}
        while let Some((header, _)) = guest.take() {
            fwd_cnt = header.fwd_cnt;
        }
    }
    assert!(sent > window, "the unix socket took some");
    assert!(guest.host.fault().is_none());
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; sent as usize];
        host.read_exact(&mut all).map(|()| host)
    });
    while fwd_cnt != sent {
        fwd_cnt = guest.expect().0.fwd_cnt.max(fwd_cnt);
        if fwd_cnt != sent {
            guest.send(packet(Op::CreditRequest, PORT, GUEST_PORT), &[]);
            guest.kick();
        }
    }
    drop(reader.join().unwrap().unwrap());
}

#[test]
fn guest_without_room_gets_nothing_but_one_question() {
    let folder = Folder::new("no-room");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    guest.send(Header { buf_alloc: 10, ..packet(Op::Request, PORT, GUEST_PORT) }, &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
    let mut host = limited(listener.accept().unwrap().0);
    host.write_all(&[1; 25]).unwrap();
    assert_eq!(guest.expect().1.len(), 10);
    // Not at once: a guest that consumes tells by itself.
    guest.expect_silence();
    assert_eq!(guest.expect().0.op, Op::CreditRequest);
    // Four times as long as a stream has to stand still for the question; a device that fails here fails the test.
    for _ in 0..10 {
        guest.host.turn(20).unwrap();
    }
    guest.expect_silence();
    guest.send(Header { buf_alloc: 10, fwd_cnt: 10, ..packet(Op::CreditUpdate, PORT, GUEST_PORT) }, &[]);
    guest.kick();
    assert_eq!(guest.expect().1.len(), 10);
    assert_eq!(guest.expect().0.op, Op::CreditRequest);
}

#[test]
fn stalled_stream_does_not_hold_up_another() {
    let folder = Folder::new("head-of-line");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    for guest_port in [1, 2] {
        let buf_alloc = if guest_port == 1 { 0 } else { 1 << 20 };
        guest.send(Header { buf_alloc, ..packet(Op::Request, PORT, guest_port) }, &[]);
        guest.kick();
        assert_eq!(guest.expect().0.op, Op::Response);
    }
    let mut streams: Vec<_> = (0..2).map(|_| limited(listener.accept().unwrap().0)).collect();
    for stream in &mut streams {
        stream.write_all(b"hello").unwrap();
    }
    let first = guest.expect();
    let second = guest.expect();
    let data = if first.0.op == Op::ReadWrite { &first } else { &second };
    assert_eq!((data.0.dst_port, data.1.as_slice()), (2, &b"hello"[..]));
}

#[test]
fn host_program_that_never_reads_holds_up_no_other_one() {
    let folder = Folder::new("never-reads");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    let mut programs = Vec::new();
    for guest_port in [0, 1] {
        guest.send(packet(Op::Request, PORT, guest_port), &[]);
        guest.kick();
        assert_eq!(guest.expect().0.op, Op::Response);
        programs.push(limited(listener.accept().unwrap().0));
    }
    let chunk = [7; 16 << 10];
    let (mut sent, mut room) = ([0u32; 2], [0u32; 2]);
    // The second sends far more than a window and a unix socket hold; the first as much as it may, until neither
    // takes any more.
    while sent[1] < 4 << 20 {
        for guest_port in [0, 1] {
            let len = room[guest_port as usize].min(chunk.len() as u32);
            let data = &chunk[..len as usize];
            if len > 0 {
                assert!(guest.send(Header { len, ..packet(Op::ReadWrite, PORT, guest_port) }, data));
                sent[guest_port as usize] += len;
            }
            guest.send(packet(Op::CreditRequest, PORT, guest_port), &[]);
            guest.kick();
            if guest_port == 1 {
                programs[1].read_exact(&mut vec![0; len as usize]).unwrap();
            }
        }
        let mut heard = [false; 2];
        while heard != [true; 2] {
            let (header, _) = guest.expect();
            assert_eq!(header.op, Op::CreditUpdate);
            let port = header.dst_port as usize;
            room[port] = header.buf_alloc - (sent[port] - header.fwd_cnt);
            heard[port] = true;
        }
    }
    assert!(room[0] == 0 && sent[0] < 2 << 20, "{sent:?} {room:?}");
    assert_eq!(guest.open_streams(), 2);
}

#[test]
fn streams_take_turns() {
    let folder = Folder::new("turns");
    let mut guest = Guest::new(&folder);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    let mut streams = Vec::new();
    for guest_port in 0..4 {
        guest.send(packet(Op::Request, PORT, guest_port), &[]);
        guest.kick();
        assert_eq!(guest.expect().0.op, Op::Response);
        streams.push(limited(listener.accept().unwrap().0));
    }
    // No guest buffers while the host programs fill their sockets.
    while guest.turn() {}
    for stream in &mut streams {
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 4096]).is_ok() {}
    }
    let mut turns: Vec<(u32, usize)> = Vec::new();
    let mut bytes = [0usize; 4];
    while bytes.iter().sum::<usize>() < 400_000 {
        let (header, data) = guest.expect();
        bytes[header.dst_port as usize] += data.len();
        match turns.last_mut() {
            Some((port, count)) if *port == header.dst_port => *count += data.len(),
            _ => turns.push((header.dst_port, data.len())),
        }
    }
    let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
    assert!(most - least <= 2 * 20 * 4096, "{bytes:?}");
    // A turn for which the guest had too few buffers went on with its next ones.
    assert!(turns.iter().any(|(_, count)| *count > 100_000), "{turns:?}");
}

#[test]
fn new_driver_finds_no_old_connections_and_the_listener_still_there() {
    let folder = Folder::new("new-driver");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    data(&mut guest, PORT, b"last words");
    guest.host.reset();
    let mut last = Vec::new();
    host.read_to_end(&mut last).unwrap();
    assert_eq!(last, b"last words");
    assert_eq!(guest.open_streams(), 0);
    guest.begin_driver();
    from_host(&mut guest, &folder);
}

#[test]
fn stopped_and_resumed_rings_keep_connections() {
    let folder = Folder::new("resumed");
    let mut guest = Guest::new(&folder);
    let mut host = from_guest(&mut guest, &folder);
    let positions = [0, 1, 2].map(|queue| guest.host.stop_ring(queue).unwrap());
    host.write_all(b"while stopped").unwrap();
    while guest.turn() {}
    assert_eq!(guest.take(), None);
    let layouts = [guest.rx.layout(), guest.tx.layout(), guest.event.layout()];
    for queue in 0..3u16 {
        let (layout, next_avail) = (layouts[usize::from(queue)], positions[usize::from(queue)]);
        let start = strato_virtio::RingStart { queue, layout, next_avail, kick: None };
        guest.host.start_ring(start).unwrap();
    }
    assert_eq!(guest.expect().1, b"while stopped");
}

#[test]
fn too_many_connections_are_refused_and_room_is_made_by_a_close() {
    let folder = Folder::new("limit");
    let mut guest = Guest::with_limit(&folder, 2);
    let _listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    for (guest_port, op) in [(1, Op::Response), (2, Op::Response), (3, Op::Reset)] {
        guest.send(packet(Op::Request, PORT, guest_port), &[]);
        guest.kick();
        assert_eq!(guest.expect().0.op, op);
    }
    guest.send(packet(Op::Reset, PORT, 1), &[]);
    guest.send(packet(Op::Request, PORT, 3), &[]);
    guest.kick();
    assert_eq!(guest.expect().0.op, Op::Response);
}

#[test]
fn full_backlog_of_a_host_program_is_asked_again() {
    let folder = Folder::new("backlog");
    let mut guest = Guest::new(&folder);
    let path = uds_for(&folder, PORT);
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: a listening socket may be told a new backlog at any time.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    for guest_port in 0..3 {
        guest.send(packet(Op::Request, PORT, guest_port), &[]);
    }
    guest.kick();
    let mut accepted = Vec::new();
    for _ in 0..3 {
        assert_eq!(guest.expect().0.op, Op::Response);
        accepted.push(listener.accept().unwrap());
    }
}
