//! The virtio device cores. Each folder has the same files: `device` (the [`strato_virtio::DeviceCore`]),
//! `queue` (what is in the buffers), `backend` (the host side), `metrics`, `state` (saved state), `tests`; and
//! `control`, the handle on a running device, where there is anything to change. What is beside them is the device's
//! own. `strato-proof` has a test of it.
//!
//! Cores know no transport and no interrupt line, and nothing here knows containers or JSON.
// Modules that need it say so.
#![deny(unsafe_code)]

pub mod balloon;
pub mod block;
mod bucket;
pub mod console;
pub mod fs;
mod limits;
mod linger;
pub mod net;
pub mod rng;
mod timer;
pub mod vsock;

pub use self::bucket::{BucketConfig, TokenBucket};
pub use self::limits::{Limiter, Limits};
