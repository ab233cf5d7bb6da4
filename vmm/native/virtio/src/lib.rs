//! What is common to all virtio devices, whoever owns their rings.
//!
//! A **device core** ([`DeviceCore`]) knows its queues, guest memory and a backend, and calls
//! [`Notifier::notify`] when the driver should look. It knows no interrupt line and no transport. A
//! [`DeviceHost`] owns one core with its rings and its descriptors; a [`Worker`] is the thread that turns a
//! host's crank. Shells (vhost-user, virtio-mmio) talk to the worker only: every command is answered after
//! the core has come to rest, so a shell never has to guess whether a buffer is still in use.
//!
//! Rules that hold everywhere in this crate:
//! - what the guest wrote is copied once and then checked; nothing is read twice;
//! - a driver that breaks the ring protocol gets DEVICE_NEEDS_RESET, never an abort of the process;
//! - a descriptor chain is refused as a whole if any part of it cannot be reached.
// Modules that need it say so.
#![deny(unsafe_code)]

pub mod allocator;
mod chain;
mod core;
mod discard;
mod events;
mod features;
mod host;
mod iov;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod observer;
mod posted;
pub mod random;
pub mod record;
mod ring;
pub mod thread;
pub mod transport;
mod worker;

pub use self::chain::{Chain, ChainError, MAX_CHAIN_DESCRIPTORS, Span};
pub use self::core::{
    ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Notification, Notifier, Progress,
    RunningRing, SaveObstacle,
};
pub use self::discard::{RAM_ADVICE, discard};
pub use self::events::{Events, Interest, MAX_CORE_TOKEN, Ready};
pub use self::features::{
    RING_FEATURES, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, negotiated,
};
pub use self::host::{DeviceHost, RingStart, duplicate};
pub use self::iov::{GuestBuffers, IovecStorage, MAX_IOVECS, OwnedGuestBuffers};
pub use self::observer::{Observer, Unobserved};
pub use self::posted::PostedBuffers;
pub use self::ring::{MAX_RING_SIZE, Ring, RingError, RingLayout};
pub use self::worker::{Worker, WorkerEnd, WorkerError, panic_text};

use std::sync::Arc;

/// Guest RAM as the cores see it. One name, so that a dirty bitmap can be added in one place.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// A shared handle to guest RAM: whoever holds one keeps the mapping alive.
pub type GuestRamHandle = Arc<GuestRam>;
