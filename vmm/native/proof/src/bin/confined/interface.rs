//! A tap of two queues in a network namespace of this thread's own.

use std::process::Command;

use strato_devices::net::{Net, NetConfig, Tap};
use strato_devices::{BucketConfig, Limits};

use super::devices::Driver;

const HEADER: usize = 12;
const FRAME: usize = 600;

pub(crate) fn work() {
    // SAFETY: unshare takes a number; the namespace is this thread's, which ends with the test.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let taps = Tap::open("t0", 2).unwrap();
    ip("link set t0 up");
    let limits =
        Limits { bandwidth: Some(BucketConfig { rate: 64 << 10, burst: 2 << 10 }), operations: None };
    let config = NetConfig {
        taps,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        link_up: true,
        receive_limits: Limits::default(),
        transmit_limits: limits,
    };
    let net = Net::new(config).unwrap();
    let handle = net.control();
    let mut driver = Driver::new("net", Box::new(net), 5, u64::MAX);
    let control = 4;
    // Both pairs of queues, then one again (VIRTIO_NET_CTRL_MQ, VQ_PAIRS_SET).
    assert_eq!(driver.ask(control, &[4, 0, 2, 0], 1), [0]);
    let mut frame = vec![0u8; HEADER + FRAME];
    frame[HEADER..HEADER + 6].fill(0xff);
    for _ in 0..8 {
        driver.ask(1, &frame, 0);
        driver.ask(3, &frame, 0);
    }
    assert_eq!(driver.ask(control, &[4, 0, 1, 0], 1), [0]);
    // The kernel greets everybody on a new interface; one such packet comes to whichever queue.
    driver.offer(0, &[], 2048);
    ip("address add 10.9.9.1/24 dev t0");
    ip("neighbour add 10.9.9.2 lladdr 02:00:00:00:00:01 dev t0");
    let socket = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
    for _ in 0..16 {
        socket.send_to(b"to the guest", "10.9.9.2:9").unwrap();
    }
    assert!(driver.used(0) as usize > HEADER);
    handle.set_link(false);
    driver.hear_of_new_configuration();
    driver.end();
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).status().unwrap();
    assert!(done.success(), "ip {line}");
}
