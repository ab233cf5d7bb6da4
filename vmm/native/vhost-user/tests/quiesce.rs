//! Whatever stops or moves something is answered only when the device has come to rest; and the device's own
//! word on the channel.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES,
    Ready,
};
use support::{Backend, FrontEnd, serve};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{VhostUserFrontend, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Keeps every chain until it has to give it back: the slowest backend there is.
struct Slow {
    info: DeviceInfo,
    kept: Vec<u16>,
    drained: Arc<AtomicU32>,
    config: u32,
    change: EventFd,
}

impl DeviceCore for Slow {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> std::io::Result<()> {
        io.events.add(self.change.as_raw_fd(), 0, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::new(self.config.to_le_bytes().to_vec())
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
        let mut chain = Chain::new();
        while ring.pop(&mut chain)? {
            self.kept.push(chain.head());
        }
        Ok(Progress::Idle)
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        _token: u64,
        _ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        self.change.read().unwrap();
        self.config += 1;
        io.notify_config();
        Ok(Progress::Idle)
    }

    fn drain(&mut self, io: &mut DeviceIo<'_>) {
        if let Some(mut ring) = io.ring(0) {
            for head in self.kept.drain(..) {
                ring.complete(head, 16).unwrap();
                self.drained.fetch_add(1, Ordering::SeqCst);
            }
            ring.notify().unwrap();
        }
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        assert!(self.kept.is_empty(), "reset with something in flight");
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _record: &[u8]) -> Result<(), RecordError> {
        Ok(())
    }
}

fn slow(front_ends: usize) -> (Backend, Arc<AtomicU32>, EventFd) {
    let drained = Arc::new(AtomicU32::new(0));
    let change = EventFd::new(EFD_NONBLOCK).unwrap();
    let core = Slow {
        info: DeviceInfo {
            device_type: 99,
            name: "slow",
            features: RING_FEATURES,
            queue_sizes: vec![16],
            config_len: 4,
        },
        kept: Vec::new(),
        drained: Arc::clone(&drained),
        config: 7,
        change: change.try_clone().unwrap(),
    };
    (serve(Box::new(core), front_ends), drained, change)
}

fn four_in_flight(backend: &Backend) -> FrontEnd {
    let mut front_end = FrontEnd::connect(backend);
    for _ in 0..4 {
        front_end.ask();
    }
    // Looked into at once: by the answer, the chains are in flight.
    front_end.start(0);
    assert_eq!(front_end.queue.used_idx(), 0);
    front_end
}

#[test]
fn get_vring_base_answers_when_everything_in_flight_is_done() {
    let (backend, _, _) = slow(1);
    let front_end = four_in_flight(&backend);
    assert_eq!(front_end.requests.get_vring_base(0).unwrap(), 4);
    assert_eq!(front_end.queue.used_idx(), 4);
}

#[test]
fn disabled_ring_has_nothing_in_flight() {
    let (backend, _, _) = slow(1);
    let mut front_end = four_in_flight(&backend);
    front_end.requests.set_vring_enable(0, false).unwrap();
    assert_eq!(front_end.queue.used_idx(), 4);
}

#[test]
fn reset_answers_when_everything_in_flight_is_done() {
    let (backend, drained, _) = slow(1);
    let mut front_end = four_in_flight(&backend);
    front_end.requests.reset_device().unwrap();
    assert_eq!(drained.load(Ordering::SeqCst), 4);
    let memory = front_end.queue.read(0, support::RAM);
    front_end.requests.get_features().unwrap();
    assert!(front_end.queue.read(0, support::RAM) == memory);
}

#[test]
fn memory_is_exchanged_when_everything_in_flight_is_done_in_the_old_one() {
    let (backend, _, _) = slow(1);
    let front_end = four_in_flight(&backend);
    front_end.send_memory().unwrap();
    assert_eq!(front_end.queue.used_idx(), 4);
}

#[test]
fn front_end_that_goes_leaves_nothing_in_flight() {
    let (backend, drained, _) = slow(2);
    let front_end = four_in_flight(&backend);
    let (ram, queue) = (Arc::clone(&front_end.ram), front_end.queue);
    drop(front_end.requests);
    // The next one is served after the first one's end was seen to.
    let second = FrontEnd::with_memory(&backend, ram, queue);
    assert_eq!(drained.load(Ordering::SeqCst), 4);
    assert_eq!(second.queue.used_idx(), 4);
}

#[test]
fn new_kick_descriptor_finds_nothing_in_flight() {
    let (backend, _, _) = slow(1);
    let front_end = four_in_flight(&backend);
    front_end.requests.set_vring_kick(0, &front_end.kick).unwrap();
    assert_eq!(front_end.queue.used_idx(), 4);
}

#[test]
fn config_change_reaches_the_front_end_on_the_channel() {
    let (backend, _, change) = slow(1);
    let mut front_end = FrontEnd::connect(&backend);
    let offered = front_end.requests.get_protocol_features().unwrap();
    assert!(offered.contains(VhostUserProtocolFeatures::BACKEND_REQ));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    front_end.requests.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    front_end.start(0);
    for value in 8..11u32 {
        change.write(1).unwrap();
        let mut raw = [0; 12];
        ours.read_exact(&mut raw).unwrap();
        let fields: Vec<u32> =
            raw.chunks(4).map(|field| u32::from_ne_bytes(field.try_into().unwrap())).collect();
        assert_eq!(fields, [2, 1, 0], "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no body");
        let (_, config) =
            front_end.requests.get_config(0, 4, VhostUserConfigFlags::empty(), &[0; 4]).unwrap();
        assert_eq!(config, value.to_le_bytes());
    }
}

/// A front end that does not read its channel, or closes it, holds nothing up.
#[test]
fn config_changes_that_nobody_reads_are_lost_without_harm() {
    let (backend, _, change) = slow(1);
    let mut front_end = FrontEnd::connect(&backend);
    let (ours, theirs) = UnixStream::pair().unwrap();
    front_end.requests.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    front_end.start(0);
    let mut last = 7;
    for round in 0..5000u32 {
        change.write(1).unwrap();
        if round == 4000 {
            ours.shutdown(std::net::Shutdown::Both).unwrap();
        }
        if round % 500 == 0 {
            let (_, config) =
                front_end.requests.get_config(0, 4, VhostUserConfigFlags::empty(), &[0; 4]).unwrap();
            last = u32::from_le_bytes(config.try_into().unwrap());
        }
    }
    assert!(last > 7);
    assert_eq!(front_end.requests.get_vring_base(0).unwrap(), 0);
}

#[test]
fn channel_ends_with_its_front_end() {
    let (backend, _, change) = slow(2);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut first = FrontEnd::connect(&backend);
    first.requests.set_backend_request_fd(&theirs).unwrap();
    drop((first, theirs));
    assert_eq!(ours.read(&mut [0; 12]).unwrap(), 0);
    change.write(1).unwrap();
    let second = FrontEnd::connect(&backend);
    second.requests.get_features().unwrap();
}
