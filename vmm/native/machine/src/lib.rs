//! The virtual machine on KVM.
//!
//! It executes resolved numbers: where RAM, slots and platform devices lie is the board's plan (Python), not ours.
//! What differs between architectures is in [`arch`].
// Modules that need it say so.
#![deny(unsafe_code)]

pub mod arch;
pub mod bus;
pub mod counters;
pub mod events;
mod exit;
mod gate;
mod hub;
mod kick;
pub mod machine;
pub mod memory;
pub mod platform;
pub mod probe;
pub mod slot;
mod stats;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;
