//! The devices, each with a host side of its own.

pub(crate) mod balloon;
pub(crate) mod block;
pub(crate) mod console;
pub(crate) mod fs;
pub(crate) mod net;
pub(crate) mod rng;
pub(crate) mod scratch;
pub(crate) mod vsock;
