//! The shared file system (virtio 1.2, section 5.11), in two halves.
//!
//! The FUSE half speaks the protocol with the guest and moves data between guest memory and open files; it
//! needs no capability. The host half ([`host::HostFs`], implemented in `passthrough`) knows the host's files
//! and never sees guest memory.

pub mod host;
pub mod passthrough;
