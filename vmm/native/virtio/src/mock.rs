//! The driver's side of a virtqueue, built by hand in guest memory: honest by default, and able to lie in
//! every field. For tests only.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::{Bytes, GuestAddress};

use crate::core::{Notification, Notifier};
use crate::ring::RingLayout;
use crate::{GuestRam, GuestRamHandle};

/// Descriptor flag: the chain goes on.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a descriptor table.
pub const INDIRECT: u16 = 4;

/// One raw descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Flags.
    pub flags: u16,
    /// Next index.
    pub next: u16,
}

/// Guest memory of `size` bytes at address 0, beginning with a page that is never handed out.
#[allow(clippy::expect_used)]
pub fn guest_ram(size: usize) -> GuestRamHandle {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), size)]).expect("guest memory"))
}

/// A virtqueue as its driver sees it.
#[derive(Debug)]
pub struct MockQueue {
    ram: GuestRamHandle,
    layout: RingLayout,
    event_idx: bool,
    free: Vec<u16>,
    avail_idx: u16,
    used_seen: u16,
    chains: Vec<Vec<u16>>,
}

#[allow(clippy::expect_used, clippy::indexing_slicing, missing_docs)]
impl MockQueue {
    /// Lays a ring of `size` descriptors out at `base`; returns it with the first address after it.
    pub fn new(ram: &GuestRamHandle, base: u64, size: u16) -> (Self, u64) {
        let desc_table = base.next_multiple_of(16);
        let avail_ring = desc_table + 16 * u64::from(size);
        let used_ring = (avail_ring + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let end = used_ring + 6 + 8 * u64::from(size);
        let queue = Self {
            ram: Arc::clone(ram),
            layout: RingLayout { size, desc_table, avail_ring, used_ring },
            event_idx: false,
            free: (0..size).rev().collect(),
            avail_idx: 0,
            used_seen: 0,
            chains: vec![Vec::new(); usize::from(size)],
        };
        queue.ram.write_slice(&vec![0; (end - base) as usize], GuestAddress(base)).expect("ring memory");
        (queue, end)
    }

    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    pub fn use_event_idx(&mut self) {
        self.event_idx = true;
        self.set_used_event(self.used_seen);
    }

    pub fn ram(&self) -> &GuestRamHandle {
        &self.ram
    }

    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.write_descriptor_at(self.layout.desc_table, index, descriptor);
    }

    /// Writes entry `index` of the table at `table` (for indirect tables).
    pub fn write_descriptor_at(&self, table: u64, index: u16, descriptor: Descriptor) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&descriptor.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        raw[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        raw[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.ram.write_slice(&raw, GuestAddress(table + 16 * u64::from(index))).expect("descriptor");
    }

    /// Offers a chain of (address, length, device-writable) buffers. None if no descriptors are free.
    pub fn offer(&mut self, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let indices: Vec<u16> = buffers.iter().filter_map(|_| self.free.pop()).collect();
        for (position, &(addr, len, writable)) in buffers.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            let flags = if writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            let descriptor = Descriptor { addr, len, flags, next: next.unwrap_or(0) };
            self.write_descriptor(indices[position], descriptor);
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.publish(head);
        Some(head)
    }

    /// Offers a chain through an indirect table written at `table`.
    pub fn offer_indirect(&mut self, table: u64, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        let head = self.free.pop()?;
        for (position, &(addr, len, writable)) in buffers.iter().enumerate() {
            let last = position + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = position as u16 + 1;
            self.write_descriptor_at(table, position as u16, Descriptor { addr, len, flags, next });
        }
        let len = 16 * buffers.len() as u32;
        self.write_descriptor(head, Descriptor { addr: table, len, flags: INDIRECT, next: 0 });
        self.chains[usize::from(head)] = vec![head];
        self.publish(head);
        Some(head)
    }

    /// Puts `head` (any number) into the available ring.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.layout.size);
        self.ram
            .write_obj(head.to_le(), GuestAddress(self.layout.avail_ring + 4 + 2 * slot))
            .expect("avail entry");
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(self.avail_idx);
    }

    /// Writes `avail.idx` itself: a jump, if it does not fit what was published.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.ram
            .store(
                index.to_le(),
                GuestAddress(self.layout.avail_ring + 2),
                std::sync::atomic::Ordering::Release,
            )
            .expect("avail idx");
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.ram.write_obj(flags.to_le(), GuestAddress(self.layout.avail_ring)).expect("avail flags");
    }

    pub fn set_used_event(&self, index: u16) {
        let at = self.layout.avail_ring + 4 + 2 * u64::from(self.layout.size);
        self.ram.write_obj(index.to_le(), GuestAddress(at)).expect("used_event");
    }

    pub fn used_idx(&self) -> u16 {
        let at = GuestAddress(self.layout.used_ring + 2);
        self.ram.load(at, std::sync::atomic::Ordering::Acquire).map(u16::from_le).expect("used idx")
    }

    /// The next used element as (head, bytes written); its descriptors are free again.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.used_seen {
            return None;
        }
        let slot = u64::from(self.used_seen % self.layout.size);
        let at = self.layout.used_ring + 4 + 8 * slot;
        let head: u32 = self.ram.read_obj(GuestAddress(at)).map(u32::from_le).expect("used id");
        let len: u32 = self.ram.read_obj(GuestAddress(at + 4)).map(u32::from_le).expect("used len");
        self.used_seen = self.used_seen.wrapping_add(1);
        if self.event_idx {
            self.set_used_event(self.used_seen);
        }
        let head = head as u16;
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(chain);
        Some((head, len))
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(addr)).expect("guest read");
        data
    }

    pub fn write(&self, addr: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(addr)).expect("guest write");
    }
}

/// A notifier that remembers; clones share one memory.
#[derive(Clone, Debug)]
pub struct MockNotifier {
    sent: Sender<Notification>,
    received: Arc<Mutex<Receiver<Notification>>>,
}

impl Default for MockNotifier {
    fn default() -> Self {
        let (sent, received) = channel();
        Self { sent, received: Arc::new(Mutex::new(received)) }
    }
}

impl MockNotifier {
    /// Everything notified since the last call.
    pub fn take(&self) -> Vec<Notification> {
        self.received.lock().map(|received| received.try_iter().collect()).unwrap_or_default()
    }
}

impl Notifier for MockNotifier {
    fn notify(&self, what: Notification) {
        // The receiver lives as long as `self`.
        let _ = self.sent.send(what);
    }
}

/// A small deterministic generator (xorshift64*), so that every failure can be repeated from its seed.
#[derive(Clone, Debug)]
pub struct SeededRandom(u64);

impl SeededRandom {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound` (0 if that is 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next_u64() >> 11).checked_rem(bound).unwrap_or(0)
    }

    /// Fills `data`.
    pub fn fill(&mut self, data: &mut [u8]) {
        for byte in data {
            *byte = (self.next_u64() >> 32) as u8;
        }
    }
}
