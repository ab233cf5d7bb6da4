//! A guest without a kernel: rings, headers and nothing it does not say itself.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use strato_virtio::mock::{MockNotifier, MockQueue, guest_ram};
use strato_virtio::{DeviceHost, GuestRamHandle, RING_FEATURES, RingStart, VIRTIO_F_EVENT_IDX};

use super::super::queue::{F_SEQPACKET, HEADER_LEN, HOST_CID, TYPE_STREAM};
use super::super::{Header, Op, Vsock, VsockConfig, VsockControl, VsockMetrics};

pub(super) const GUEST_CID: u64 = 3;

const RX_SIZE: u16 = 64;
pub(super) const TX_SIZE: u16 = 128;
const RX_BUFFERS: u64 = 0x80_0000;
const RX_STRIDE: u64 = 0x1_1000;
const TX_BUFFERS: u64 = 0x10_0000;
const TX_STRIDE: u64 = 0x1_1000;

/// A folder of its own for each test, gone with it.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("strato-vsock-{}-{count}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) struct Guest {
    pub(super) host: DeviceHost,
    pub(super) rx: MockQueue,
    pub(super) tx: MockQueue,
    pub(super) event: MockQueue,
    pub(super) metrics: Arc<VsockMetrics>,
    pub(super) control: VsockControl,
    pub(super) notifier: MockNotifier,
    pub(super) rx_len: u32,
    pub(super) features: u64,
    ram: GuestRamHandle,
    rx_at: Vec<u64>,
    tx_free: Vec<u64>,
    tx_at: Vec<u64>,
    inbox: VecDeque<(Header, Vec<u8>)>,
}

impl Guest {
    pub(super) fn new(folder: &Folder) -> Self {
        Self::with_limit(folder, 4096)
    }

    pub(super) fn with_limit(folder: &Folder, max_connections: usize) -> Self {
        Self::with(folder, max_connections, Duration::from_secs(60))
    }

    /// With a device of more or less patience.
    pub(super) fn with(folder: &Folder, max_connections: usize, patience: Duration) -> Self {
        let config = VsockConfig { guest_cid: GUEST_CID, path: uds(folder), max_connections };
        let mut device = Vsock::new(config).unwrap();
        device.patience = patience;
        let metrics = device.metrics();
        let control = device.control();
        let notifier = MockNotifier::default();
        let mut host = DeviceHost::new(Box::new(device), Box::new(notifier.clone())).unwrap();
        let ram = guest_ram(0x200_0000);
        host.set_memory(ram.clone()).unwrap();
        let mut guest = Self {
            host,
            rx: MockQueue::new(&ram, 0x1000, RX_SIZE).0,
            tx: MockQueue::new(&ram, 0x1_0000, TX_SIZE).0,
            event: MockQueue::new(&ram, 0x2_0000, 4).0,
            metrics,
            control,
            notifier,
            rx_len: 4096,
            features: RING_FEATURES & !VIRTIO_F_EVENT_IDX | F_SEQPACKET,
            ram,
            rx_at: vec![0; usize::from(RX_SIZE)],
            tx_free: Vec::new(),
            tx_at: vec![0; usize::from(TX_SIZE)],
            inbox: VecDeque::new(),
        };
        guest.begin_driver();
        guest
    }

    /// A driver begins: fresh rings, all running.
    pub(super) fn begin_driver(&mut self) {
        self.rx = MockQueue::new(&self.ram, 0x1000, RX_SIZE).0;
        self.tx = MockQueue::new(&self.ram, 0x1_0000, TX_SIZE).0;
        self.event = MockQueue::new(&self.ram, 0x2_0000, 4).0;
        self.inbox.clear();
        self.rx_at.fill(0);
        self.tx_free = (0..u64::from(TX_SIZE / 2)).map(|n| TX_BUFFERS + n * TX_STRIDE).collect();
        assert!(self.host.set_features(self.features));
        for (queue, layout) in [(0, self.rx.layout()), (1, self.tx.layout()), (2, self.event.layout())] {
            self.host.start_ring(RingStart { queue, layout, next_avail: 0, kick: None }).unwrap();
        }
    }

    pub(super) fn refill(&mut self) {
        self.refill_to(usize::from(RX_SIZE));
    }

    /// Offers receive buffers until `count` are out.
    pub(super) fn refill_to(&mut self, count: usize) {
        let mut out = usize::from(RX_SIZE) - self.rx.free_descriptors();
        let mut slots: Vec<u64> = (0..u64::from(RX_SIZE)).map(|n| RX_BUFFERS + n * RX_STRIDE).collect();
        slots.retain(|slot| !self.rx_at.contains(slot));
        while out < count {
            let Some(slot) = slots.pop() else { break };
            let Some(head) = self.rx.offer(&[(slot, self.rx_len, true)]) else { break };
            self.rx_at[usize::from(head)] = slot;
            out += 1;
        }
        self.host.kick(0);
    }

    /// Sends a packet with any header; false if the ring is full.
    pub(super) fn send_raw(&mut self, header: &[u8], data: &[u8]) -> bool {
        self.reap();
        let Some(slot) = self.tx_free.pop() else { return false };
        self.tx.write(slot, header);
        self.tx.write(slot + header.len() as u64, data);
        // Header and data in two descriptors, as old drivers do; newer ones use one or many.
        let mut buffers = vec![(slot, header.len() as u32, false)];
        if !data.is_empty() {
            let half = data.len() as u32 / 2;
            buffers.push((slot + header.len() as u64, half, false));
            buffers.push((slot + header.len() as u64 + u64::from(half), data.len() as u32 - half, false));
        }
        let Some(head) = self.tx.offer(&buffers) else {
            self.tx_free.push(slot);
            return false;
        };
        self.tx_at[usize::from(head)] = slot;
        true
    }

    pub(super) fn send(&mut self, header: Header, data: &[u8]) -> bool {
        self.send_raw(&header.to_bytes(), data)
    }

    pub(super) fn kick(&mut self) {
        self.host.kick(1);
        self.reap();
    }

    fn reap(&mut self) {
        while let Some((head, _)) = self.tx.take_used() {
            self.tx_free.push(self.tx_at[usize::from(head)]);
        }
    }

    /// Lets the device do what it can without waiting, and collects what it sent.
    pub(super) fn turn(&mut self) -> bool {
        let worked = self.host.turn(0).unwrap();
        self.collect();
        worked
    }

    fn collect(&mut self) {
        while let Some((head, len)) = self.rx.take_used() {
            let slot = std::mem::take(&mut self.rx_at[usize::from(head)]);
            if len == 0 {
                continue;
            }
            let raw = self.rx.read(slot, HEADER_LEN);
            let header = Header::parse(raw.first_chunk().unwrap());
            assert_eq!(len, HEADER_LEN as u32 + header.len);
            assert_eq!(header.dst_cid, GUEST_CID);
            assert!(header.src_cid == HOST_CID || header.op == Op::Reset);
            let data = self.rx.read(slot + HEADER_LEN as u64, header.len as usize);
            self.inbox.push_back((header, data));
        }
    }

    /// Lets the device come to rest: nothing happens for a while, and what was to be told soon has been told.
    pub(super) fn rest(&mut self) {
        while self.host.turn(20).unwrap() {
            self.collect();
        }
    }

    /// The next packet from the device, if there is one by now.
    pub(super) fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        self.inbox.pop_front()
    }

    /// The next packet from the device.
    pub(super) fn expect(&mut self) -> (Header, Vec<u8>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(packet) = self.take() {
                return packet;
            }
            assert!(Instant::now() < deadline, "no packet came");
            self.refill();
            self.collect();
            // What the device has given by now is not waited for.
            if self.inbox.is_empty() {
                self.host.turn(20).unwrap();
                self.collect();
            }
        }
    }

    /// The next packet that is no window update.
    pub(super) fn expect_op(&mut self) -> Op {
        loop {
            match self.expect().0.op {
                Op::CreditUpdate => {}
                other => return other,
            }
        }
    }

    /// Nothing comes, however much the device works.
    pub(super) fn expect_silence(&mut self) {
        self.refill();
        while self.turn() {}
        assert_eq!(self.take(), None);
    }

    /// As many streams as there should be.
    pub(super) fn open_streams(&self) -> u64 {
        self.metrics.opened.load(Relaxed) - self.metrics.closed.load(Relaxed)
    }
}

pub(super) fn uds(folder: &Folder) -> PathBuf {
    folder.0.join("v")
}

pub(super) fn uds_for(folder: &Folder, port: u32) -> PathBuf {
    let mut name = uds(folder).into_os_string();
    name.push(format!("_{port}"));
    Path::new(&name).to_owned()
}

/// A packet of the guest with a large window.
pub(super) fn packet(op: Op, host_port: u32, guest_port: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        len: 0,
        socket_type: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
}
