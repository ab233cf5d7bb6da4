//! What differs between architectures.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use self::x86_64::{InterruptController, LINES, probe_guest};
