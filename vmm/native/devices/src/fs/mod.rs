//! The shared file system (virtio 1.2, section 5.11), in two halves.
//!
//! The FUSE half speaks the protocol with the guest and moves data between guest memory and open files; it
//! needs no capability. The host half ([`backend::HostFs`], implemented in `passthrough`) knows the host's files
//! and never sees guest memory.
//!
//! A request is done on the device's own thread if it is likely to be quick, and by a small pool otherwise.

pub mod backend;
mod decode;
mod device;
mod init;
mod mappings;
mod metrics;
mod operations;
pub mod passthrough;
mod pool;
mod queue;
mod reply;
mod server;
mod state;
#[cfg(test)]
mod tests;
pub mod window;
mod wire;

pub use self::device::{Fs, FsConfig};
pub use self::metrics::FsMetrics;
