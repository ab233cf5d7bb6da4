//! A guest without a kernel: requests are built from fields, answers taken apart into fields.
#![allow(unsafe_code, reason = "tests")]

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use strato_virtio::mock::{MockNotifier, MockQueue, guest_ram};
use strato_virtio::{DeviceHost, GuestRamHandle, RingLayout, RingStart, VIRTIO_F_VERSION_1};

use super::super::backend::{CachePolicy, ROOT_NODE};
use super::super::passthrough::{Passthrough, PassthroughConfig, Root, ShareConfig};
use super::super::wire::{IN_HEADER_LEN, OUT_HEADER_LEN};
use super::super::{Fs, FsConfig, FsMetrics};

pub(super) const HIPRIO: u16 = 0;
pub(super) const REQUESTS: u16 = 1;
/// Where requests and answers lie: room for the largest of both.
pub(super) const REQUEST: u64 = 0x10_0000;
pub(super) const ANSWER: u64 = 0x40_0000;
const RAM_LEN: usize = 0x80_0000;

/// INIT's flags of Linux 6.12.
pub(super) const LINUX_FLAGS: u64 = 0x0000_01ff_7fff_ffff;

/// A folder that is gone with its owner.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(parent: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("strato-fuse-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A request's body, or an answer to compare with.
#[derive(Clone, Debug, Default)]
pub(super) struct Body(pub(super) Vec<u8>);

impl Body {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A name with its terminator.
    pub(super) fn name(self, name: &str) -> Self {
        self.bytes(name.as_bytes()).bytes(&[0])
    }
}

/// The payload of a good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload(pub(super) Vec<u8>);

impl Payload {
    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// The names of a listing, with the offset after each.
    pub(super) fn names(&self, plus: bool) -> Vec<(String, u64, u64)> {
        let mut names = Vec::new();
        let mut at = 0;
        while at < self.0.len() {
            let node = if plus { self.u64(at) } else { 0 };
            at += if plus { 128 } else { 0 };
            let len = self.u32(at + 16) as usize;
            let name = String::from_utf8(self.0[at + 24..at + 24 + len].to_vec()).unwrap();
            names.push((name, self.u64(at + 8), node));
            at += (24 + len).next_multiple_of(8);
        }
        names
    }
}

pub(super) struct Setup {
    pub(super) config: FsConfig,
    pub(super) readonly: bool,
    pub(super) remote_locks: bool,
    /// The folder is on a tmpfs.
    pub(super) in_memory: bool,
    /// The root is no folder but a list of shares, empty at first.
    pub(super) collection: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let config = FsConfig { tag: "test".into(), threads: 2, ..FsConfig::default() };
        Self { config, readonly: false, remote_locks: false, in_memory: false, collection: false }
    }
}

pub(super) struct Guest {
    pub(super) host: DeviceHost,
    pub(super) queues: Vec<MockQueue>,
    pub(super) notifier: MockNotifier,
    pub(super) metrics: Arc<FsMetrics>,
    pub(super) ram: GuestRamHandle,
    pub(super) uid: u32,
    pub(super) gid: u32,
    unique: u64,
    pub(super) passthrough: Arc<Passthrough>,
    /// After the device, which has the folder open.
    pub(super) folder: Folder,
}

impl Guest {
    /// A guest that has not mounted yet.
    pub(super) fn unmounted(setup: Setup) -> Self {
        let folder = if setup.in_memory { Folder::below(Path::new("/dev/shm")) } else { Folder::new() };
        let directory = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&folder.0);
        let mut share = ShareConfig::new(directory.unwrap().into());
        share.cache = setup.config.cache;
        share.readonly = setup.readonly;
        let root = if setup.collection { Root::Collection } else { Root::Directory(share) };
        let mut config = PassthroughConfig::new(root).unwrap();
        config.remote_locks = setup.remote_locks;
        let passthrough = Arc::new(Passthrough::new(config).unwrap());
        let device = Fs::new(setup.config, passthrough.clone()).unwrap();
        let metrics = device.metrics();
        let ram = guest_ram(RAM_LEN);
        let mut next = 0x1000;
        let mut queues = Vec::new();
        for _ in 0..2 {
            let (queue, end) = MockQueue::new(&ram, next, 128);
            queues.push(queue);
            next = end;
        }
        let notifier = MockNotifier::default();
        let host = DeviceHost::new(Box::new(device), Box::new(notifier.clone())).unwrap();
        let (uid, gid, unique) = (0, 0, 7);
        let mut guest = Self { host, queues, notifier, metrics, ram, uid, gid, unique, passthrough, folder };
        guest.host.set_memory(Arc::clone(&guest.ram)).unwrap();
        guest.start();
        guest
    }

    /// Starts both queues as a new driver.
    pub(super) fn start(&mut self) {
        assert!(self.host.set_features(VIRTIO_F_VERSION_1));
        for queue in [HIPRIO, REQUESTS] {
            let layout: RingLayout = self.queues[usize::from(queue)].layout();
            self.host.start_ring(RingStart { queue, layout, next_avail: 0, kick: None }).unwrap();
        }
    }

    /// Starts both queues where they were, empty, as a new driver.
    pub(super) fn restart(&mut self) {
        for queue in &mut self.queues {
            let layout = queue.layout();
            *queue = MockQueue::new(&self.ram, layout.desc_table, layout.size).0;
        }
        self.start();
    }

    /// A guest that has mounted.
    pub(super) fn with(setup: Setup) -> Self {
        let mut guest = Self::unmounted(setup);
        guest.mount();
        guest
    }

    pub(super) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(super) fn cached(cache: CachePolicy) -> Self {
        let mut setup = Setup::default();
        setup.config.cache = cache;
        Self::with(setup)
    }

    pub(super) fn mount(&mut self) -> Payload {
        let body = Body::new().u32(7).u32(41).u32(1 << 17).u32(LINUX_FLAGS as u32);
        let body = body.u32((LINUX_FLAGS >> 32) as u32).bytes(&[0; 44]);
        self.ask(26, ROOT_NODE, body).unwrap()
    }

    /// The header of a request with so many bytes after it.
    pub(super) fn header(&mut self, opcode: u32, node: u64, len: usize) -> Vec<u8> {
        self.unique += 2;
        let fields = Body::new().u32((IN_HEADER_LEN + len) as u32).u32(opcode).u64(self.unique).u64(node);
        fields.u32(self.uid).u32(self.gid).u32(4711).u32(0).0
    }

    /// Offers buffers on a queue and waits for their return; how many bytes were written.
    pub(super) fn offer(&mut self, queue: u16, buffers: &[(u64, u32, bool)]) -> u32 {
        let head = self.queues[usize::from(queue)].offer(buffers).unwrap();
        self.host.kick(queue);
        loop {
            if let Some((used, len)) = self.queues[usize::from(queue)].take_used() {
                assert_eq!(used, head);
                return len;
            }
            assert!(self.host.turn(10_000).unwrap(), "the request is lost");
        }
    }

    /// Sends raw bytes with so much room for an answer; the answer, if there is one.
    pub(super) fn send(&mut self, request: &[u8], room: u32) -> Option<(i32, Vec<u8>)> {
        self.queues[0].write(REQUEST, request);
        let used = self.offer(REQUESTS, &[(REQUEST, request.len() as u32, false), (ANSWER, room, true)]);
        self.answer(used)
    }

    /// What the device wrote: (errno, payload).
    pub(super) fn answer(&self, used: u32) -> Option<(i32, Vec<u8>)> {
        if used == 0 {
            return None;
        }
        let answer = self.queues[0].read(ANSWER, used as usize);
        let field = |at: usize| i32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        assert_eq!(field(0), used as i32, "length in the header");
        let unique = u64::from_le_bytes(answer[8..16].try_into().unwrap());
        assert!(unique == self.unique || unique == 0);
        Some((-field(4), answer[OUT_HEADER_LEN..].to_vec()))
    }

    pub(super) fn ask_with_room(
        &mut self,
        opcode: u32,
        node: u64,
        body: Body,
        room: u32,
    ) -> Result<Payload, i32> {
        let mut request = self.header(opcode, node, body.0.len());
        request.extend(&body.0);
        let (error, payload) = self.send(&request, room).expect("an answer");
        if error == 0 { Ok(Payload(payload)) } else { Err(error) }
    }

    pub(super) fn ask(&mut self, opcode: u32, node: u64, body: Body) -> Result<Payload, i32> {
        self.ask_with_room(opcode, node, body, 4096)
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<Payload, i32> {
        self.ask(1, parent, Body::new().name(name))
    }

    /// The node of a name that is there.
    pub(super) fn node(&mut self, parent: u64, name: &str) -> u64 {
        self.lookup(parent, name).unwrap().u64(0)
    }

    pub(super) fn forget(&mut self, node: u64, count: u64) {
        let mut request = self.header(2, node, 8);
        request.extend(count.to_le_bytes());
        self.queues[0].write(REQUEST, &request);
        assert_eq!(self.offer(HIPRIO, &[(REQUEST, request.len() as u32, false)]), 0);
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = Body::new().u32(flags as u32).u32(0);
        self.ask(14, node, body).map(|payload| payload.u64(0))
    }

    /// Creates and opens; (node, handle).
    pub(super) fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(u64, u64), i32> {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let body = Body::new().u32(flags as u32).u32(libc::S_IFREG | mode).u32(0o022).u32(0).name(name);
        self.ask(35, parent, body).map(|payload| (payload.u64(0), payload.u64(128)))
    }

    pub(super) fn write_body(handle: u64, offset: u64, data: &[u8], write_flags: u32, flags: i32) -> Body {
        let body = Body::new().u64(handle).u64(offset).u32(data.len() as u32).u32(write_flags);
        body.u64(0).u32(flags as u32).u32(0).bytes(data)
    }

    pub(super) fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let body = Self::write_body(handle, offset, data, 0, 0);
        self.ask(16, 0, body).map(|payload| payload.u32(0))
    }

    pub(super) fn read_body(handle: u64, offset: u64, size: u32) -> Body {
        Body::new().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0)
    }

    pub(super) fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let body = Self::read_body(handle, offset, size);
        self.ask_with_room(15, 0, body, size + OUT_HEADER_LEN as u32).map(|payload| payload.0)
    }

    pub(super) fn release(&mut self, handle: u64) -> Result<Payload, i32> {
        self.ask(18, 0, Body::new().u64(handle).u32(0).u32(0).u64(0))
    }

    /// The names in a directory, of all the listings that it takes with so much room for each.
    pub(super) fn list(&mut self, node: u64, plus: bool, size: u32) -> Vec<(String, u64)> {
        let handle = self.ask(27, node, Body::new().u32(0).u32(0)).unwrap().u64(0);
        let opcode = if plus { 44 } else { 28 };
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let body = Self::read_body(handle, offset, size);
            let room = size + OUT_HEADER_LEN as u32;
            let names = self.ask_with_room(opcode, node, body, room).unwrap().names(plus);
            let Some(last) = names.last() else { break };
            offset = last.1;
            all.extend(names.into_iter().map(|(name, _, node)| (name, node)));
        }
        self.ask(29, node, Body::new().u64(handle).u32(0).u32(0).u64(0)).unwrap();
        all.sort();
        all
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        let found = self.metrics.snapshot().into_iter().find(|(counter, _)| *counter == name);
        found.expect("a counter").1
    }
}

/// Whether the test may switch users; says so if not.
pub(super) fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("not run as root: what needs other users is left out");
    }
    root
}
