//! The devices, each with a host side of its own.

pub(crate) mod block;
pub(crate) mod rng;
mod scratch;
pub(crate) mod vsock;
