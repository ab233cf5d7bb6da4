//! As many connections as a device has by default, all open at once.
#![expect(unsafe_code, reason = "the limit of open files")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::super::{Header, Op};
use super::guest::{Folder, Guest, packet, uds, uds_for};

const PORT: u32 = 1234;
const GUEST_PORT: u32 = 5000;
/// The default of the programs that make devices.
const MANY: u32 = 4096;
/// One of so many carries data.
const TALKS: usize = 16;

/// Each connection has a descriptor at both ends.
fn open_as_many_files_as_allowed() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a local of the right type.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

/// Both ends of a connection: the host program's, and the guest's as (host port, guest port).
struct Both(UnixStream, (u32, u32));

fn from_guest(guest: &mut Guest, listener: &UnixListener, guest_port: u32) -> Both {
    assert!(guest.send(packet(Op::Request, PORT, guest_port), &[]));
    guest.kick();
    let (answer, _) = guest.expect();
    assert_eq!((answer.op, answer.dst_port), (Op::Response, guest_port));
    Both(listener.accept().unwrap().0, (PORT, guest_port))
}

fn from_host(guest: &mut Guest, folder: &Folder) -> Both {
    let mut stream = UnixStream::connect(uds(folder)).unwrap();
    stream.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).unwrap();
    let (request, _) = guest.expect();
    assert_eq!(request.op, Op::Request);
    assert!(guest.send(packet(Op::Response, request.src_port, GUEST_PORT), &[]));
    guest.kick();
    let mut answer = vec![0; format!("OK {}\n", request.src_port).len()];
    stream.read_exact(&mut answer).unwrap();
    Both(stream, (request.src_port, GUEST_PORT))
}

#[test]
fn thousands_of_connections_are_open_at_once_and_one_more_is_refused() {
    open_as_many_files_as_allowed();
    let folder = Folder::new("thousands");
    let mut guest = Guest::with_limit(&folder, MANY as usize);
    let listener = UnixListener::bind(uds_for(&folder, PORT)).unwrap();
    let mut open: Vec<Both> = Vec::new();
    for n in 0..MANY / 2 {
        open.push(from_guest(&mut guest, &listener, n));
        open.push(from_host(&mut guest, &folder));
    }
    assert_eq!(guest.open_streams(), u64::from(MANY));

    // One more of either side.
    assert!(guest.send(packet(Op::Request, PORT, MANY), &[]));
    guest.kick();
    let (answer, _) = guest.expect();
    assert_eq!((answer.op, answer.dst_port), (Op::Reset, MANY));
    let mut refused = UnixStream::connect(uds(&folder)).unwrap();
    while guest.turn() {}
    assert_eq!(refused.read(&mut [0; 1]).unwrap(), 0);

    // What they say before the guest takes anything, and what it says to them, finds its way.
    let talk = |n: usize| format!("connection {n}").into_bytes();
    for (n, Both(stream, ports)) in open.iter_mut().enumerate().step_by(TALKS) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&talk(n)).unwrap();
        let header = Header { len: talk(n).len() as u32, ..packet(Op::ReadWrite, ports.0, ports.1) };
        assert!(guest.send(header, &talk(n)));
        guest.kick();
        let mut heard = vec![0; talk(n).len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, talk(n));
    }
    let mut left: Vec<usize> = (0..open.len()).step_by(TALKS).collect();
    while !left.is_empty() {
        let (header, data) = guest.expect();
        assert_eq!(header.op, Op::ReadWrite);
        let known = left.iter().position(|&n| open[n].1 == (header.src_port, header.dst_port)).unwrap();
        assert_eq!(data, talk(left.swap_remove(known)));
    }

    // A place that becomes free is there for the next one, of either side.
    for n in [0, 1] {
        assert!(guest.send(packet(Op::Reset, open[n].1.0, open[n].1.1), &[]));
        guest.kick();
        open[n] =
            if n == 0 { from_guest(&mut guest, &listener, MANY) } else { from_host(&mut guest, &folder) };
    }
    guest.host.reset();
    assert_eq!(guest.open_streams(), 0);
    for Both(stream, _) in &mut open {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}
