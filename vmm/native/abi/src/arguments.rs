//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

const USAGE: &str = "usage: strato-vhost-device rng --socket PATH [--once]";

/// Which device is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Rng,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) device: Device,
    pub(crate) socket: PathBuf,
    /// End when the first front end has gone.
    pub(crate) once: bool,
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let kind = words.next().ok_or(USAGE)?;
        let (mut socket, mut once) = (None, false);
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--once") => once = true,
                Some("--socket") => socket = Some(words.next().ok_or("--socket needs a path")?.into()),
                _ => return Err(format!("Unknown argument {}; {USAGE}", word.to_string_lossy())),
            }
        }
        let device = match kind.to_str() {
            Some("rng") => Device::Rng,
            _ => return Err(format!("Unknown device {}; {USAGE}", kind.to_string_lossy())),
        };
        let socket = socket.ok_or_else(|| format!("--socket is missing; {USAGE}"))?;
        Ok(Self { device, socket, once })
    }
}
