//! A machine with a network device: the mock driver on one side, a packet socket on the other.
#![allow(unsafe_code, reason = "tests")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use strato_virtio::mock::{MockNotifier, MockQueue, guest_ram};
use strato_virtio::{DeviceHost, GuestRamHandle, Notification, RingStart, VIRTIO_F_VERSION_1};

use crate::Limits;
use crate::net::queue::HEADER_LEN;
use crate::net::{Net, NetConfig, NetControl, NetMetrics, Tap};

pub(super) const MAC: [u8; 6] = [2, 0x53, 0x54, 0x52, 0, 7];
pub(super) const RAM: usize = 4 << 20;
/// Where packets are put together, and beyond the rings.
pub(super) const TX_DATA: u64 = 0x10_0000;
pub(super) const RX_DATA: u64 = 0x20_0000;
pub(super) const CONTROL_DATA: u64 = 0xf_0000;
/// Control queue of a device with one pair.
pub(super) const CONTROL_QUEUE: u16 = 2;

/// The far end of a device's packet socket.
pub(super) struct Cable(OwnedFd);

impl Cable {
    pub(super) fn pair() -> (Self, Tap) {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the pointer is to two ints, as socketpair wants.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
        // SAFETY: socketpair returned them just now; nobody else owns them.
        let [far, near] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        (Self(far), Tap::packet_socket(near).unwrap())
    }

    /// Sends one packet; false if there is no room.
    pub(super) fn send(&self, header: [u8; HEADER_LEN], frame: &[u8]) -> bool {
        let packet = [&header[..], frame].concat();
        // SAFETY: pointer and length are those of `packet`.
        unsafe { libc::write(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len()) > 0 }
    }

    pub(super) fn receive(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut packet = vec![0; 70_000];
        // SAFETY: pointer and length are those of `packet`.
        let len = unsafe { libc::read(self.0.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len()) };
        packet.truncate(usize::try_from(len).ok().filter(|&len| len > 0)?);
        let frame = packet.split_off(HEADER_LEN);
        Some((packet, frame))
    }

    /// Makes the device's writes fail with "try again" until the far end is read.
    pub(super) fn fill(tap: &Tap) {
        let packet = [0; 60];
        // SAFETY: pointer and length are those of `packet`.
        while unsafe { libc::write(tap.fd(), packet.as_ptr().cast(), packet.len()) } > 0 {}
    }
}

pub(super) struct Machine {
    pub(super) host: DeviceHost,
    pub(super) ram: GuestRamHandle,
    /// Receive, transmit, receive, …, control.
    pub(super) queues: Vec<MockQueue>,
    pub(super) cables: Vec<Cable>,
    pub(super) notifier: MockNotifier,
    pub(super) handle: NetControl,
    pub(super) metrics: Arc<NetMetrics>,
}

pub(super) fn config(taps: Vec<Tap>) -> NetConfig {
    NetConfig {
        taps,
        mac: MAC,
        mtu: Some(1400),
        link_up: true,
        receive_limits: Limits::default(),
        transmit_limits: Limits::default(),
    }
}

/// A machine whose driver accepted `features`, all queues running.
pub(super) fn machine(features: u64) -> Machine {
    with_pairs(1, features, |_| {})
}

pub(super) fn with_pairs(pairs: usize, features: u64, change: impl FnOnce(&mut NetConfig)) -> Machine {
    let (cables, taps) = (0..pairs).map(|_| Cable::pair()).unzip();
    let mut config = config(taps);
    change(&mut config);
    let mut m = stopped(config, cables);
    assert!(m.host.set_features(features | VIRTIO_F_VERSION_1), "{:#x}", m.host.info().features);
    m.start_all();
    m.notifier.take();
    m
}

/// A machine before its driver comes.
pub(super) fn stopped(config: NetConfig, cables: Vec<Cable>) -> Machine {
    let ram = guest_ram(RAM);
    let net = Net::new(config).unwrap();
    let (handle, metrics) = (net.control(), net.metrics());
    let notifier = MockNotifier::default();
    let mut host = DeviceHost::new(Box::new(net), Box::new(notifier.clone())).unwrap();
    host.set_memory(Arc::clone(&ram)).unwrap();
    let mut base = 0x1000;
    let queues = host.info().queue_sizes.iter().map(|_| {
        let (queue, end) = MockQueue::new(&ram, base, 256);
        base = end;
        queue
    });
    let queues = queues.collect();
    Machine { host, ram, queues, cables, notifier, handle, metrics }
}

impl Machine {
    pub(super) fn start_all(&mut self) {
        for queue in 0..self.queues.len() as u16 {
            self.start(queue, 0);
        }
    }

    pub(super) fn start(&mut self, queue: u16, next_avail: u16) {
        let layout = self.queues[usize::from(queue)].layout();
        self.host.start_ring(RingStart { queue, layout, next_avail, kick: None }).unwrap();
    }

    /// Turns the crank until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.host.turn(0).unwrap() {
                return;
            }
        }
        panic!("the device never comes to rest");
    }

    /// Offers a receive buffer.
    pub(super) fn post(&mut self, addr: u64, len: u32) -> u16 {
        self.queues[0].offer(&[(addr, len, true)]).unwrap()
    }

    pub(super) fn kick(&mut self, queue: u16) {
        self.host.kick(queue);
        self.settle();
    }

    /// Sends a packet as the guest, header and frame in one buffer; returns after it came back.
    pub(super) fn send(&mut self, header: [u8; HEADER_LEN], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        self.queues[1].write(TX_DATA, &packet);
        self.queues[1].offer(&[(TX_DATA, packet.len() as u32, false)]).unwrap();
        self.kick(1);
        assert!(self.queues[1].take_used().is_some());
    }

    /// Asks something of the control queue; returns the answer, 255 if there was none.
    pub(super) fn ask(&mut self, queue: u16, class: u8, command: u8, data: &[u8]) -> u8 {
        let driver = &mut self.queues[usize::from(queue)];
        let request = [&[class, command], data].concat();
        driver.write(CONTROL_DATA, &request);
        driver.write(CONTROL_DATA + 0x1000, &[255]);
        let buffers = [(CONTROL_DATA, request.len() as u32, false), (CONTROL_DATA + 0x1000, 1, true)];
        driver.offer(&buffers).unwrap();
        self.kick(queue);
        self.queues[usize::from(queue)].take_used().unwrap();
        self.queues[usize::from(queue)].read(CONTROL_DATA + 0x1000, 1)[0]
    }

    /// The next packet that the guest received, from buffers of `buffer_len` at RX_DATA + head * 64 KiB.
    pub(super) fn count(&self, name: &str) -> u64 {
        self.metrics.snapshot().into_iter().find(|(known, _)| *known == name).unwrap().1
    }

    pub(super) fn config_notified(&self) -> bool {
        self.notifier.take().contains(&Notification::Config)
    }

    pub(super) fn status(&self) -> u16 {
        let config = self.host.config();
        u16::from_le_bytes(config.get(6, 2).unwrap().try_into().unwrap())
    }
}

/// A frame of `len` bytes that tells which one it is.
pub(super) fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u64 * 7 + number * 13) as u8).collect();
    frame[..8].copy_from_slice(&number.to_le_bytes());
    frame
}

/// A header that asks for nothing.
pub(super) const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];
