//! Streams and messages, begun by either side, and both of their ends.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use strato_devices::vsock::{Header, Op, Vsock, VsockConfig};
use strato_proof::message_sockets;

use super::devices::Driver;

const GUEST_CID: u64 = 3;
const LENGTH: usize = 44;
const STREAM: u16 = 1;
const SEQPACKET: u16 = 2;

fn packet(op: Op, host_port: u32, guest_port: u32, data: &[u8]) -> Vec<u8> {
    packet_of(STREAM, op, (host_port, guest_port), data)
}

/// Ports: the host's, the guest's.
fn packet_of(socket_type: u16, op: Op, ports: (u32, u32), data: &[u8]) -> Vec<u8> {
    let header = Header {
        src_cid: GUEST_CID,
        dst_cid: 2,
        src_port: ports.1,
        dst_port: ports.0,
        len: data.len() as u32,
        socket_type,
        op,
        flags: match op {
            Op::Shutdown => 3,
            // A whole message.
            Op::ReadWrite => u32::from(socket_type == SEQPACKET),
            _ => 0,
        },
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    };
    [header.to_bytes().as_slice(), data].concat()
}

/// The next packet of this kind for the guest, its header and data.
fn expect(driver: &mut Driver, op: Op) -> (Header, Vec<u8>) {
    loop {
        let raw = driver.ask(0, &[], 4096);
        let header = Header::parse(raw.first_chunk().unwrap());
        if header.op == op {
            return (header, raw[LENGTH..].to_vec());
        }
    }
}

pub(crate) fn work() {
    let folder = std::env::temp_dir().join(format!("strato-confined-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("v");
    let listener = UnixListener::bind(folder.join("v_7")).unwrap();
    let config = VsockConfig { guest_cid: GUEST_CID, path: path.clone(), max_connections: 16 };
    let mut driver = Driver::new("vsock", Box::new(Vsock::new(config).unwrap()), 3, u64::MAX);

    // The guest connects.
    driver.ask(1, &packet(Op::Request, 7, 70, &[]), 0);
    let (mut host, _) = listener.accept().unwrap();
    expect(&mut driver, Op::Response);
    driver.ask(1, &packet(Op::ReadWrite, 7, 70, b"from the guest"), 0);
    let mut got = [0; 14];
    host.read_exact(&mut got).unwrap();
    host.write_all(b"from the host").unwrap();
    assert_eq!(expect(&mut driver, Op::ReadWrite).1, b"from the host");
    driver.ask(1, &packet(Op::Shutdown, 7, 70, &[]), 0);
    assert_eq!(host.read(&mut got).unwrap(), 0);

    // The host connects.
    let mut program = UnixStream::connect(&path).unwrap();
    program.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    program.write_all(b"CONNECT 80\n").unwrap();
    let (request, _) = expect(&mut driver, Op::Request);
    driver.ask(1, &packet(Op::Response, request.src_port, 80, &[]), 0);
    let mut line = [0; 3];
    program.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK ");
    drop(program);
    expect(&mut driver, Op::Reset);

    messages(&mut driver, &folder);

    driver.end();
    assert!(!path.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

fn messages(driver: &mut Driver, folder: &Path) {
    let listener = message_sockets::listen(&folder.join("v_8")).unwrap();
    driver.ask(1, &packet_of(SEQPACKET, Op::Request, (8, 81), &[]), 0);
    let (mut host, _) = listener.accept().unwrap();
    expect(driver, Op::Response);
    driver.ask(1, &packet_of(SEQPACKET, Op::ReadWrite, (8, 81), b"from the guest"), 0);
    let mut got = [0; 15];
    assert_eq!(host.read(&mut got).unwrap(), 14);
    // One without bytes reads like the end.
    assert_eq!(host.write(b"").unwrap(), 0);
    host.write_all(b"from the host").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(expect(driver, Op::ReadWrite).1, b"");
    assert_eq!(expect(driver, Op::ReadWrite).1, b"from the host");
    expect(driver, Op::Shutdown);

    let mut program = message_sockets::connect(&folder.join("v_seq")).unwrap();
    program.write_all(b"CONNECT 80\n").unwrap();
    let (request, _) = expect(driver, Op::Request);
    assert_eq!(request.socket_type, SEQPACKET);
}
