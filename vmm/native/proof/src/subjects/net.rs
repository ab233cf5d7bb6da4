//! The network device on a packet socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use strato_devices::Limits;
use strato_devices::net::{Net, NetConfig, Tap};
use strato_virtio::DeviceCore;

use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

const HEADER: usize = 12;
/// Without it there is no control queue (virtio 1.2, 5.1.2).
const VIRTIO_NET_F_CTRL_VQ: u64 = 1 << 17;

struct Cable {
    /// The far end; reads and writes are whole packets.
    far: File,
}

pub(crate) fn make() -> Box<dyn Subject> {
    Box::new(Cable { far: cable().0 })
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

impl Subject for Cable {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let (far, near) = cable();
        self.far = far;
        let config = NetConfig {
            taps: vec![Tap::packet_socket(near).unwrap()],
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            link_up: true,
            receive_limits: Limits::default(),
            transmit_limits: Limits::default(),
        };
        Box::new(Net::new(config).unwrap())
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Buffers, QueueUse::Requests, QueueUse::Requests]
    }

    fn request(&self, choices: &mut Choices<'_>, queue: u16) -> Request {
        match queue {
            0 => Request { readable: Vec::new(), writable: choices.one_of(&[1526, 1526, 300, 12, 11, 0]) },
            1 => {
                let mut readable = packet(choices.below(3000) as usize);
                for _ in 0..choices.below(4) {
                    readable[choices.below(HEADER as u64) as usize] = choices.number() as u8;
                }
                if choices.once_in(10) {
                    readable.truncate(choices.below(30) as usize);
                }
                Request { readable, writable: 0 }
            }
            _ => {
                let mut readable = vec![choices.below(7) as u8, choices.below(3) as u8];
                let len = choices.one_of(&[0, 1, 2, 6, 8, 8, 40]);
                readable.extend((0..len).map(|_| choices.below(3) as u8));
                Request { readable, writable: choices.one_of(&[1, 1, 1, 0, 9]) }
            }
        }
    }

    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        // Neither waits; a full or empty socket is no event.
        if choices.once_in(2) {
            let _ = self.far.write(&packet(choices.below(5000) as usize));
        } else {
            let _ = self.far.read(&mut [0; 4000]);
        }
    }

    fn probe(&mut self, machine: &mut Machine) {
        while self.far.read(&mut [0; 4000]).is_ok_and(|len| len > 0) {}
        let sent = packet(60);
        machine.ask(1, &sent, 0);
        let mut got = [0; 4000];
        let len = self.far.read(&mut got).unwrap();
        assert_eq!(got[..len], sent);
        if machine.features() & VIRTIO_NET_F_CTRL_VQ != 0 {
            // Promiscuous mode, on.
            assert_eq!(machine.ask(2, &[0, 0, 1], 1), [0]);
        }
        let deadline = machine.deadline();
        loop {
            // One is enough, but what was sent before may be longer than the buffer.
            let _ = self.far.write(&sent);
            let raw = machine.ask_until(0, &[], 1526, deadline);
            if raw.get(HEADER..HEADER + 60) == Some(&sent[HEADER..]) {
                break;
            }
        }
    }
}
