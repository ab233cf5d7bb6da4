//! The virtio-mmio shell (virtio 1.2, section 4.2): any [`strato_virtio::DeviceCore`] behind registers.
//!
//! Two kinds of threads come here: vCPUs, which read and write registers, and the device's
//! [`strato_virtio::Worker`], which notifies. A vCPU may wait for the worker (a reset, the start of the queues, a
//! stale configuration), so the worker never waits for a lock that a vCPU can hold.
