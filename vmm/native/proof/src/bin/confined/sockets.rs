//! Streams, begun by either side, and both of their ends.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use strato_devices::vsock::{Header, Op, Vsock, VsockConfig};

use super::devices::Driver;

const GUEST_CID: u64 = 3;
const LENGTH: usize = 44;

fn packet(op: Op, host_port: u32, guest_port: u32, data: &[u8]) -> Vec<u8> {
    let header = Header {
        src_cid: GUEST_CID,
        dst_cid: 2,
        src_port: guest_port,
        dst_port: host_port,
        len: data.len() as u32,
        socket_type: 1,
        op,
        flags: if op == Op::Shutdown { 3 } else { 0 },
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

    driver.end();
    assert!(!path.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}
