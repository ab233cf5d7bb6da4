//! What each thread of strato-vmm can still ask of the kernel.
//!
//! A [`Role`] is a kind of thread: its capabilities, and a filter of system calls that is compiled from a table
//! of rules ([`rules`], [`program`]) when this crate is. Threads take their role on when they start, once
//! [`confine_threads`] has been called; the thread that calls is the last to go ([`confine`]). [`landlock`] is
//! about files and is inherited by threads that are started later.
// Modules that need it say so.
#![deny(unsafe_code)]

mod confinement;
pub mod filter;
pub mod landlock;
pub mod program;
mod role;
pub mod rules;
mod tables;

#[cfg(feature = "proof")]
pub use confinement::proof;
pub use confinement::{confine, confine_threads, confinement, enter};
pub use program::Otherwise;
pub use role::Role;
