//! x86-64.

pub(super) mod balloon;
pub(super) mod base;
pub(super) mod block;
pub(super) mod console;
pub(super) mod control;
pub(super) mod fs;
pub(super) mod keeper;
pub(super) mod kvm;
pub(super) mod late;
pub(super) mod net;
pub(super) mod queues;
pub(super) mod rng;
pub(super) mod service;
pub(super) mod vcpu;
pub(super) mod vsock;
