//! The socket device (virtio 1.2, section 5.10), towards the host as unix sockets with Firecracker's protocol:
//! a host program connects to `<path>`, writes `CONNECT <port>\n` and reads `OK <host port>\n`; a guest that
//! connects to host port N arrives as a connection to `<path>_N`.
//!
//! Sockets of type SEQPACKET do the same with unix sockets of that type: `<path>_seq` is where host programs
//! connect, the two lines are a message each, and whoever listens at `<path>_N` gets connections of its own type
//! only. A packet that ends a message is one end of a unix socket's message; see `connection::messages`.
//!
//! Who owns what: the [`Vsock`] core owns the connection table; a connection owns its unix socket and the
//! bytes that the guest sent and the host program has not taken yet (at most its window). Bytes towards the
//! guest are never stored here: they stay in the unix socket until the guest has room for them, which is the
//! back-pressure on the host program.
//!
//! No byte is lost at a close: what one side wrote before it closed is delivered before the other side hears
//! of the close, even if the connection's port pair is in use again by then.

mod backend;
mod connection;
mod control;
mod device;
mod metrics;
mod opening;
mod queue;
mod receive;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod transmit;

pub use self::control::VsockControl;
pub use self::device::{Vsock, VsockConfig};
pub use self::metrics::VsockMetrics;
pub use self::queue::{Header, Op};
