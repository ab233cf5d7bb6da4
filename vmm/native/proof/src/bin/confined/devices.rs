//! A device as strato-vmm serves it, with a front end and a driver on this thread.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strato_devices::BucketConfig;
use strato_devices::balloon::{Balloon, BalloonConfig};
use strato_devices::rng::{Rng, RngConfig};
use strato_virtio::mock::MockQueue;
use strato_virtio::{DeviceCore, GuestRam, GuestRamHandle, VIRTIO_F_VERSION_1};
use strato_vmm::device::{Device, Parts, Reporter};
use strato_vmm::events::EventRing;
use strato_vmm::kinds::Control;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

const RAM: usize = 4 << 20;
const RING_SIZE: u16 = 16;
/// Where the driver's buffers begin; each has this much room.
const BUFFERS: u64 = 1 << 20;
const ROOM: u64 = 0x1_0000;
/// VHOST_USER_F_PROTOCOL_FEATURES
const PROTOCOL: u64 = 1 << 30;

/// Both sides of a device.
pub(crate) struct Driver {
    pub(crate) device: Device,
    requests: Frontend,
    channel: UnixStream,
    queues: Vec<MockQueue>,
    kicks: Vec<EventFd>,
    next: u64,
}

/// A device without front end.
pub(crate) fn device(name: &str, core: Box<dyn DeviceCore>) -> Device {
    let ring = Arc::new(EventRing::new().unwrap());
    let parts = Parts { core, counters: Box::new(Vec::new), control: Control::None };
    Device::new(name, parts, Reporter::new(ring, 0))
}

impl Driver {
    /// Starts a device of `count` queues and its driver with `features` of those that it offers.
    pub(crate) fn new(name: &str, core: Box<dyn DeviceCore>, count: usize, features: u64) -> Self {
        let device = device(name, core);
        let (ours, theirs) = UnixStream::pair().unwrap();
        device.serve(theirs.into()).unwrap();
        Self::with_connection(device, ours, count, features)
    }

    /// As QEMU begins, on a connection that is served.
    pub(crate) fn with_connection(device: Device, ours: UnixStream, count: usize, features: u64) -> Self {
        let mut requests = Frontend::from_stream(ours, count as u64);
        requests.set_owner().unwrap();
        let offered = requests.get_features().unwrap();
        let protocol = requests.get_protocol_features().unwrap();
        requests.set_protocol_features(protocol).unwrap();
        requests.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let (channel, theirs) = UnixStream::pair().unwrap();
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            requests.set_backend_request_fd(&theirs).unwrap();
        }
        requests.set_features(offered & features | VIRTIO_F_VERSION_1 | PROTOCOL).unwrap();
        let ram = shared_ram();
        requests.set_mem_table(&[region(&ram)]).unwrap();
        let queues: Vec<MockQueue> =
            (0..count as u64).map(|queue| MockQueue::new(&ram, (queue + 1) * 0x2000, RING_SIZE).0).collect();
        let mut kicks = Vec::new();
        for (number, queue) in queues.iter().enumerate() {
            requests.set_vring_num(number, RING_SIZE).unwrap();
            requests.set_vring_addr(number, &addresses(&ram, queue)).unwrap();
            requests.set_vring_base(number, 0).unwrap();
            // Blocking ones, as some front ends have them.
            let (call, kick) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
            requests.set_vring_call(number, &call).unwrap();
            requests.set_vring_kick(number, &kick).unwrap();
            requests.set_vring_enable(number, true).unwrap();
            kicks.push(kick);
        }
        Self { device, requests, channel, queues, kicks, next: BUFFERS }
    }

    /// Offers a chain and kicks; where the device will write.
    pub(crate) fn offer(&mut self, queue: usize, readable: &[u8], writable: u32) -> u64 {
        let at = self.next;
        self.next += ROOM;
        if self.next + ROOM > RAM as u64 {
            self.next = BUFFERS;
        }
        let driver = &mut self.queues[queue];
        driver.write(at, readable);
        let answer_at = at + ROOM / 2;
        // In two pieces that a disk can take, and what does not fit into them.
        let half = writable / 1024 * 512;
        let buffers = [
            (at, readable.len() as u32, false),
            (answer_at, half, true),
            (answer_at + u64::from(half), half, true),
            (answer_at + 2 * u64::from(half), writable - 2 * half, true),
        ];
        let buffers: Vec<_> = buffers.into_iter().filter(|buffer| buffer.1 > 0).collect();
        driver.offer(&buffers).expect("free descriptors");
        self.kicks[queue].write(1).unwrap();
        answer_at
    }

    /// Waits for the next chain that comes back; how much was written into it.
    pub(crate) fn used(&mut self, queue: usize) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some((_, len)) = self.queues[queue].take_used() {
                return len;
            }
            assert!(Instant::now() < deadline, "no answer on queue {queue}");
            std::thread::yield_now();
        }
    }

    /// Offers a chain and waits for one to come back; what the device wrote, if it was that one.
    pub(crate) fn ask(&mut self, queue: usize, readable: &[u8], writable: u32) -> Vec<u8> {
        let at = self.offer(queue, readable, writable);
        let len = self.used(queue);
        self.queues[queue].read(at, len as usize)
    }

    /// Waits until the device has said that its configuration has changed.
    pub(crate) fn hear_of_new_configuration(&self) {
        self.channel.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut message = [0; 12];
        std::io::Read::read_exact(&mut &self.channel, &mut message).unwrap();
    }

    /// Stops every queue, as a driver's reset does, and ends it all.
    pub(crate) fn end(self) {
        for queue in 0..self.queues.len() {
            self.requests.get_vring_base(queue).unwrap();
        }
        drop(self.requests);
        drop(self.device);
    }
}

/// Guest memory in a memfd, as a front end has it.
fn shared_ram() -> GuestRamHandle {
    // SAFETY: the name is a literal with a terminator.
    let raw = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    assert!(raw >= 0);
    // SAFETY: memfd_create returned it just now; nobody else owns it.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    file.set_len(RAM as u64).unwrap();
    let file = FileOffset::new(file, 0);
    Arc::new(GuestRam::from_ranges_with_files([(GuestAddress(0), RAM, Some(file))]).unwrap())
}

fn region(ram: &GuestRamHandle) -> VhostUserMemoryRegionInfo {
    let region = ram.find_region(GuestAddress(0)).unwrap();
    let file = region.file_offset().unwrap();
    VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        mmap_offset: file.start(),
        mmap_handle: file.file().as_raw_fd(),
    }
}

fn addresses(ram: &GuestRamHandle, queue: &MockQueue) -> VringConfigData {
    let layout = queue.layout();
    let user = |guest: u64| ram.get_host_address(GuestAddress(guest)).unwrap() as u64;
    VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr: user(layout.desc_table),
        used_ring_addr: user(layout.used_ring),
        avail_ring_addr: user(layout.avail_ring),
        log_addr: None,
    }
}

/// Random numbers, more than may be had at once.
pub(crate) fn rng() {
    let limit = BucketConfig { rate: 64 << 10, burst: 64 << 10 };
    let mut driver = Driver::new("rng", Box::new(Rng::new(RngConfig { limit }).unwrap()), 1, u64::MAX);
    for _ in 0..6 {
        assert_eq!(driver.ask(0, &[], 16 << 10).len(), 16 << 10);
    }
    driver.end();
}

/// Memory that goes back to the host, a size that the host wants, and statistics that are asked for again.
pub(crate) fn balloon() {
    let interval = Some(Duration::from_millis(1));
    let config = BalloonConfig { deflate_on_oom: true, reporting: true, stats_interval: interval };
    let balloon = Balloon::new(config).unwrap();
    let control = balloon.control();
    let mut driver = Driver::new("balloon", Box::new(balloon), 3, u64::MAX);
    for page in 800u32..808 {
        driver.ask(0, &page.to_le_bytes(), 0);
    }
    control.set_target(1 << 20).unwrap();
    driver.hear_of_new_configuration();
    driver.ask(1, &800u32.to_le_bytes(), 0);
    for _ in 0..2 {
        // No tag of a statistic is 0xffff.
        driver.offer(2, &[0xff; 10], 0);
        driver.used(2);
    }
    driver.end();
}
