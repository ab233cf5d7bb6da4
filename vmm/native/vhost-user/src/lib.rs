//! The vhost-user shell: serves any [`strato_virtio::DeviceCore`] to a front end such as QEMU.
//!
//! Two threads for a device: the caller's, which speaks the protocol in [`Shell::serve`], and the device's
//! [`strato_virtio::Worker`]. Every message that stops or moves something (GET_VRING_BASE, RESET_*,
//! SET_MEM_TABLE, a lost connection) is carried out on the worker and answered only when the core has come
//! to rest. Whoever restarts gets the device as it was left: ring positions survive a lost front end.
//!
//! The protocol's messages are crate `vhost`'s; `vhost-user-backend` is not used, because it owns its threads
//! and answers before they have stopped.
// Modules that need it say so.
#![deny(unsafe_code)]

mod channel;
mod early;
mod memory;
mod notifier;
mod server;
mod session;
mod shell;

pub use self::server::Server;
pub use self::shell::{ServerError, Shell};
