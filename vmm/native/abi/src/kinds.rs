//! The device kinds: from plain settings to a core and its counters. One function each, and nothing else here
//! knows more than one kind.

use std::io;
use std::path::PathBuf;

use strato_devices::rng::{Rng, RngConfig};
use strato_devices::vsock::{Vsock, VsockConfig};
use strato_plumbing::{Failure, Result};

use crate::device::Parts;

/// What a core says when it cannot be made, in this library's words.
fn made<T>(kind: &str, outcome: io::Result<T>) -> Result<T> {
    outcome.map_err(|error| match error.raw_os_error() {
        Some(errno) => Failure::new(format!("Device {kind} cannot be made"), errno),
        None => Failure::refused(format!("Device {kind} cannot be made: {error}")),
    })
}

/// The entropy device.
///
/// # Errors
/// No descriptors.
pub fn rng(config: RngConfig) -> Result<Parts> {
    let core = made("rng", Rng::new(config))?;
    let metrics = core.metrics();
    Ok(Parts { core: Box::new(core), counters: Box::new(move || metrics.snapshot()) })
}

/// The socket device.
///
/// # Errors
/// Its path cannot be listened at, or a reserved context id.
pub fn vsock(guest_cid: u64, path: PathBuf, max_connections: usize) -> Result<Parts> {
    let what = format!("vsock at {}", path.display());
    let core = made(&what, Vsock::new(VsockConfig { guest_cid, path, max_connections }))?;
    let metrics = core.metrics();
    Ok(Parts { core: Box::new(core), counters: Box::new(move || metrics.snapshot()) })
}
