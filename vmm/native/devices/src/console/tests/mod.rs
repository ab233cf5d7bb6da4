//! The console device against the mock driver.

mod behaviour;
mod lies;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use strato_virtio::mock::{MockNotifier, MockQueue, guest_ram};
use strato_virtio::{DeviceHost, GuestRamHandle, RingStart, VIRTIO_F_VERSION_1};

use super::*;

pub(super) const MULTIPORT: u64 = 1 << 1;
pub(super) const BUFFER: u64 = 0x40000;

/// A device with its driver, and the host's end of each port.
pub(super) struct Machine {
    pub(super) host: DeviceHost,
    pub(super) ram: GuestRamHandle,
    pub(super) queues: HashMap<u16, MockQueue>,
    pub(super) notifier: MockNotifier,
    pub(super) metrics: Arc<ConsoleMetrics>,
    pub(super) control: ConsoleControl,
    pub(super) ends: Vec<UnixStream>,
}

pub(super) fn port(name: &str) -> (PortConfig, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let input = theirs.try_clone().unwrap();
    let config = PortConfig {
        name: name.to_owned(),
        console: false,
        input: Some(input.into()),
        output: Some(theirs.into()),
    };
    (config, ours)
}

/// A device with that many ports, whose driver accepts `features` and starts all queues.
pub(super) fn machine(ports: usize, features: u64) -> Machine {
    let (configs, ends): (Vec<_>, Vec<_>) = (0..ports).map(|index| port(&format!("port{index}"))).unzip();
    let console = Console::new(ConsoleConfig { ports: configs, size: (80, 25) }).unwrap();
    let (metrics, control) = (console.metrics(), console.control());
    let notifier = MockNotifier::default();
    let host = DeviceHost::new(Box::new(console), Box::new(notifier.clone())).unwrap();
    let mut machine =
        Machine { host, ram: guest_ram(1 << 20), queues: HashMap::new(), notifier, metrics, control, ends };
    machine.host.set_memory(Arc::clone(&machine.ram)).unwrap();
    machine.start(features);
    machine
}

impl Machine {
    /// A driver begins.
    pub(super) fn start(&mut self, features: u64) {
        assert!(self.host.set_features(VIRTIO_F_VERSION_1 | features));
        let count = u16::try_from(self.host.info().queue_sizes.len()).unwrap();
        let mut base = 0x1000;
        for queue in 0..count {
            let (driver, end) = MockQueue::new(&self.ram, base, 16);
            base = end;
            let layout = driver.layout();
            self.queues.insert(queue, driver);
            self.host.start_ring(RingStart { queue, layout, next_avail: 0, kick: None }).unwrap();
        }
    }

    pub(super) fn queue(&mut self, queue: u16) -> &mut MockQueue {
        self.queues.get_mut(&queue).unwrap()
    }

    /// The guest writes to a queue.
    pub(super) fn send(&mut self, queue: u16, data: &[u8]) {
        let driver = self.queue(queue);
        driver.write(BUFFER, data);
        driver.offer(&[(BUFFER, u32::try_from(data.len()).unwrap(), false)]).unwrap();
        self.host.kick(queue);
        assert_eq!(self.queue(queue).take_used().map(|used| used.1), Some(0));
    }

    /// The guest gives a buffer of `len` bytes and returns what came into it, if anything did.
    pub(super) fn receive(&mut self, queue: u16, len: u32) -> Option<Vec<u8>> {
        let at = BUFFER + 0x10000 + 0x2000 * u64::from(queue);
        self.queue(queue).offer(&[(at, len, true)]).unwrap();
        self.host.kick(queue);
        self.turn();
        let (_, written) = self.queue(queue).take_used()?;
        Some(self.queue(queue).read(at, written as usize))
    }

    /// Control message of the guest.
    pub(super) fn say(&mut self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.send(3, &bytes);
    }

    /// Control message for the guest: port, event, value, and what follows.
    pub(super) fn hear(&mut self) -> Option<(u32, u16, u16, Vec<u8>)> {
        let bytes = self.receive(2, 128)?;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some((u32::from(half(0)), half(4), half(6), bytes[8..].to_vec()))
    }

    /// Everything that waits, until nothing does.
    pub(super) fn turn(&mut self) {
        for _ in 0..100 {
            if !self.host.turn(0).unwrap() {
                return;
            }
        }
        panic!("The device does not come to rest");
    }

    /// All that the host finds at a port.
    pub(super) fn read(&mut self, port: usize) -> Vec<u8> {
        let mut found = Vec::new();
        let mut data = [0; 65536];
        while let Ok(count @ 1..) = self.ends[port].read(&mut data) {
            found.extend(&data[..count]);
        }
        found
    }

    pub(super) fn write(&mut self, port: usize, data: &[u8]) {
        self.ends[port].write_all(data).unwrap();
        self.turn();
    }
}
