//! A console on a socket whose other end is read late.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use strato_devices::console::{Console, ConsoleConfig, PortConfig};

use super::devices::Driver;

const VIRTIO_CONSOLE_F_SIZE: u64 = 1 << 0;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// More than a socket keeps for its reader.
const LINES: usize = 40;
const LINE: usize = 16 << 10;

pub(crate) fn work() {
    let (mut host, theirs) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let output = theirs.try_clone().unwrap();
    let port = PortConfig {
        name: "terminal".into(),
        console: true,
        input: Some(OwnedFd::from(theirs)),
        output: Some(OwnedFd::from(output)),
    };
    let console = Console::new(ConsoleConfig { ports: vec![port], size: (80, 25) }).unwrap();
    let control = console.control();
    let mut driver = Driver::new("console", Box::new(console), 2, VIRTIO_CONSOLE_F_SIZE);

    host.write_all(b"to the guest").unwrap();
    let at = driver.offer(RECEIVE, &[], 64);
    assert_eq!(driver.used(RECEIVE), 12, "{at:#x}");
    for _ in 0..LINES {
        driver.ask(TRANSMIT, &vec![b'x'; LINE], 0);
    }
    let mut first = [0; LINE];
    host.read_exact(&mut first).unwrap();
    control.resize(100, 40).unwrap();
    driver.hear_of_new_configuration();
    drop(host);
    driver.offer(RECEIVE, &[], 64);
    driver.end();
}
