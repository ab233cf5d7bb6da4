//! The virtual machine on KVM.
//!
//! It executes resolved numbers: where RAM, slots and platform devices lie is the board's plan (Python), not ours.
//! What differs between architectures is in [`arch`].

pub mod arch;
pub mod bus;
pub mod events;
pub mod platform;
