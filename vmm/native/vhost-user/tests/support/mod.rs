//! A front end on crate `vhost`, and a device behind the shell for it.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use strato_devices::rng::{Rng, RngConfig};
use strato_vhost_user::Server;
use strato_virtio::mock::MockQueue;
use strato_virtio::{DeviceCore, GuestRam, GuestRamHandle, RING_FEATURES, VIRTIO_F_VERSION_1};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const RAM: usize = 1 << 20;
pub const PROTOCOL: u64 = 1 << 30;

pub struct Backend {
    pub path: PathBuf,
    pub reports: Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

/// Serves `core` to `front_ends` front ends, one after the other.
pub fn serve(core: Box<dyn DeviceCore>, front_ends: usize) -> Backend {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("strato-vu-{}-{count}", std::process::id()));
    let server = Server::new(&path, core).unwrap();
    let (sender, reports) = channel();
    let thread = std::thread::spawn(move || {
        let mut report = |what: &dyn std::fmt::Display| drop(sender.send(what.to_string()));
        for _ in 0..front_ends {
            server.serve_one(&mut report).unwrap();
        }
    });
    Backend { path, reports, thread: Some(thread) }
}

pub fn rng(front_ends: usize) -> Backend {
    serve(Box::new(Rng::new(RngConfig::default()).unwrap()), front_ends)
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

pub fn memfd(len: usize) -> File {
    // SAFETY: the name is a literal with a terminator; the descriptor returned is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len as u64).unwrap();
    file
}

/// Guest memory in a memfd, as a front end has it.
pub fn shared_ram() -> GuestRamHandle {
    let file = FileOffset::new(memfd(RAM), 0);
    Arc::new(GuestRam::from_ranges_with_files([(GuestAddress(0), RAM, Some(file))]).unwrap())
}

pub struct FrontEnd {
    pub requests: Frontend,
    pub ram: GuestRamHandle,
    pub queue: MockQueue,
    pub kick: EventFd,
    pub call: EventFd,
}

impl FrontEnd {
    /// Everything up to the ring: features, memory.
    pub fn connect(backend: &Backend) -> Self {
        let ram = shared_ram();
        let queue = MockQueue::new(&ram, 0x1000, 16).0;
        Self::with_memory(backend, ram, queue)
    }

    pub fn with_memory(backend: &Backend, ram: GuestRamHandle, queue: MockQueue) -> Self {
        let mut requests = Frontend::connect(&backend.path, 3).unwrap();
        requests.set_owner().unwrap();
        let features = requests.get_features().unwrap();
        // A device may offer bits of its own beyond these.
        assert_eq!(features & (RING_FEATURES | PROTOCOL), RING_FEATURES | PROTOCOL);
        let offered = requests.get_protocol_features().unwrap();
        requests.set_protocol_features(offered).unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG));
        requests.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        requests.set_features(VIRTIO_F_VERSION_1 | PROTOCOL).unwrap();
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        let front_end = Self { requests, ram, queue, kick: eventfd(), call: eventfd() };
        front_end.send_memory().unwrap();
        front_end
    }

    pub fn send_memory(&self) -> vhost::Result<()> {
        self.requests.set_mem_table(&[region(&self.ram)])
    }

    pub fn addresses(&self) -> VringConfigData {
        let layout = self.queue.layout();
        let user = |guest: u64| self.ram.get_host_address(GuestAddress(guest)).unwrap() as u64;
        VringConfigData {
            queue_max_size: 16,
            queue_size: 16,
            flags: 0,
            desc_table_addr: user(layout.desc_table),
            used_ring_addr: user(layout.used_ring),
            avail_ring_addr: user(layout.avail_ring),
            log_addr: None,
        }
    }

    pub fn set_up(&self, base: u16) {
        self.requests.set_vring_num(0, 16).unwrap();
        self.requests.set_vring_addr(0, &self.addresses()).unwrap();
        self.requests.set_vring_base(0, base).unwrap();
        self.requests.set_vring_call(0, &self.call).unwrap();
    }

    pub fn start(&mut self, base: u16) {
        self.set_up(base);
        self.requests.set_vring_kick(0, &self.kick).unwrap();
        self.requests.set_vring_enable(0, true).unwrap();
    }

    pub fn ask(&mut self) {
        self.queue.offer(&[(0x8000, 16, true)]).unwrap();
    }

    /// Waits until the call eventfd is signalled, then takes one used buffer.
    pub fn answered(&mut self) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some((_, len)) = self.queue.take_used() {
                return len;
            }
            assert!(Instant::now() < deadline, "no answer");
            let mut poll = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which is ours.
            unsafe { libc::poll(&mut poll, 1, 1000) };
            let _ = self.call.read();
        }
    }
}

pub fn region(ram: &GuestRamHandle) -> VhostUserMemoryRegionInfo {
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
