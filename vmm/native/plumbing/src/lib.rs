//! System-call wrappers with spoken errors.
//!
//! Used by the programs `strato-launch` and `strato-holder` and by the libraries. Every
//! function either succeeds or returns a [`Failure`] that names the step, the object and the errno text.
//! Nothing here starts threads or prints, and only [`border`] keeps state: the sentence of a thread's last failure.

pub mod border;
pub mod capabilities;
pub mod cgroup;
pub mod failure;
pub mod mounts;
pub mod netns;
pub mod parent;
pub mod status;

pub use failure::{Failure, Result, check};
