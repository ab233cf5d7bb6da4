//! `libstrato_vmm.so`: the device cores and the machine on KVM behind a C ABI, for strato-vmm.
//!
//! Each device is served over vhost-user on one end of a socketpair, or plugged into a machine; its threads are the
//! library's. [`border`] alone knows C pointers, [`kinds`] alone knows what devices there are.

pub mod border;
pub mod device;
pub mod events;
pub mod kinds;
