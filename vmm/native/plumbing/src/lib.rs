//! System-call wrappers with spoken errors.
//!
//! Used by the programs `strato-launch` and `strato-holder` and by the library `libstrato_sys.so`. Every
//! function either succeeds or returns a [`Failure`] that names the step, the object and the errno text.
//! Nothing here keeps state, starts threads or prints.

pub mod cgroup;
pub mod failure;
pub mod netns;
pub mod parent;
pub mod status;

pub use failure::{Failure, Result, check};
