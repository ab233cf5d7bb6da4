//! The network device on packet sockets, one for each pair of queues.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use strato_devices::net::{Net, NetConfig, Tap};
use strato_devices::{BucketConfig, Limits};
use strato_virtio::DeviceCore;

use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

const HEADER: usize = 12;
/// Without it there is no control queue (virtio 1.2, 5.1.2).
const VIRTIO_NET_F_CTRL_VQ: u64 = 1 << 17;
/// Without it the control queue comes after the first pair, and there are no others.
const VIRTIO_NET_F_MQ: u64 = 1 << 22;

struct Cables {
    /// The far ends; reads and writes are whole packets.
    far: Vec<File>,
    /// In each direction.
    limits: Limits,
}

pub(crate) fn make() -> Box<dyn Subject> {
    with_pairs(1, Limits::default())
}

pub(crate) fn make_pairs() -> Box<dyn Subject> {
    with_pairs(2, Limits::default())
}

/// Two pairs that share a limit: a few packets at once, then one in some hundred microseconds.
pub(crate) fn make_limited() -> Box<dyn Subject> {
    let operations = Some(BucketConfig { rate: 5_000, burst: 2 });
    let bandwidth = Some(BucketConfig { rate: 16 << 20, burst: 2048 });
    with_pairs(2, Limits { bandwidth, operations })
}

fn with_pairs(pairs: usize, limits: Limits) -> Box<dyn Subject> {
    Box::new(Cables { far: (0..pairs).map(|_| cable().0).collect(), limits })
}

fn cable() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the pointer is to two ints, as socketpair wants.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
    // SAFETY: socketpair returned them just now; nobody else owns them.
    let [far, near] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (File::from(far), near)
}

fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; HEADER + len];
    packet[..HEADER].fill(0);
    packet
}

impl Cables {
    fn pairs(&self) -> usize {
        self.far.len()
    }

    /// A packet each way through one pair.
    fn probe_pair(&mut self, machine: &mut Machine, pair: usize) {
        let far = &mut self.far[pair];
        let (receive, transmit) = (2 * pair as u16, 2 * pair as u16 + 1);
        while far.read(&mut [0; 4000]).is_ok_and(|len| len > 0) {}
        let mut sent = packet(60);
        sent[HEADER] = pair as u8;
        machine.ask(transmit, &sent, 0);
        let mut got = [0; 4000];
        let len = far.read(&mut got).unwrap();
        assert_eq!(got[..len], sent);
        let deadline = machine.deadline();
        loop {
            // One is enough, but what was sent before may be longer than the buffer.
            let _ = far.write(&sent);
            let raw = machine.ask_until(receive, &[], 1526, deadline);
            if raw.get(HEADER..HEADER + 60) == Some(&sent[HEADER..]) {
                break;
            }
        }
    }
}

impl Subject for Cables {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let (far, near): (Vec<_>, Vec<_>) = (0..self.pairs()).map(|_| cable()).unzip();
        self.far = far;
        let config = NetConfig {
            taps: near.into_iter().map(|near| Tap::packet_socket(near).unwrap()).collect(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            link_up: true,
            receive_limits: self.limits,
            transmit_limits: self.limits,
        };
        Box::new(Net::new(config).unwrap())
    }

    fn queues(&self) -> &'static [QueueUse] {
        use QueueUse::{Buffers, Requests};
        const QUEUES: [QueueUse; 5] = [Buffers, Requests, Buffers, Requests, Requests];
        // The last one is the control queue.
        &QUEUES[QUEUES.len() - 2 * self.pairs() - 1..]
    }

    fn request(&self, choices: &mut Choices<'_>, queue: u16) -> Request {
        if usize::from(queue) == 2 * self.pairs() {
            let mut readable = vec![choices.below(7) as u8, choices.below(3) as u8];
            let len = choices.one_of(&[0, 1, 2, 6, 8, 8, 40]);
            readable.extend((0..len).map(|_| choices.below(3) as u8));
            if self.pairs() > 1 && choices.once_in(3) {
                // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
                readable = vec![4, 0, choices.below(self.pairs() as u64 + 2) as u8, 0];
            }
            return Request { readable, writable: choices.one_of(&[1, 1, 1, 0, 9]) };
        }
        if queue.is_multiple_of(2) {
            return Request { readable: Vec::new(), writable: choices.one_of(&[1526, 1526, 300, 12, 11, 0]) };
        }
        let mut readable = packet(choices.below(3000) as usize);
        for _ in 0..choices.below(4) {
            readable[choices.below(HEADER as u64) as usize] = choices.number() as u8;
        }
        if choices.once_in(10) {
            readable.truncate(choices.below(30) as usize);
        }
        Request { readable, writable: 0 }
    }

    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        let pair = choices.below(self.pairs() as u64) as usize;
        // Neither waits; a full or empty socket is no event.
        if choices.once_in(2) {
            let _ = self.far[pair].write(&packet(choices.below(5000) as usize));
        } else {
            let _ = self.far[pair].read(&mut [0; 4000]);
        }
    }

    fn probe(&mut self, machine: &mut Machine) {
        let several = self.pairs() > 1 && machine.features() & VIRTIO_NET_F_MQ != 0;
        let controlled = machine.features() & VIRTIO_NET_F_CTRL_VQ != 0;
        if controlled {
            let queue = if several { 2 * self.pairs() as u16 } else { 2 };
            // Promiscuous mode, on.
            assert_eq!(machine.ask(queue, &[0, 0, 1], 1), [0]);
            if several {
                assert_eq!(machine.ask(queue, &[4, 0, self.pairs() as u8, 0], 1), [0]);
            }
        }
        // Where nobody says how many are used, all that run are.
        let served = if several || !controlled { self.pairs() } else { 1 };
        for pair in 0..served {
            self.probe_pair(machine, pair);
        }
    }
}
