//! x86-64.

pub(super) mod base;
pub(super) mod block;
pub(super) mod control;
pub(super) mod fs;
pub(super) mod net;
pub(super) mod queues;
pub(super) mod rng;
pub(super) mod service;
pub(super) mod vsock;
