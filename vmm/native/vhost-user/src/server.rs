//! A listening socket with a device behind it.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use strato_virtio::{DeviceCore, Unobserved};

use crate::shell::{ServerError, Shell};

/// One device on one socket, one front end at a time.
pub struct Server {
    listener: UnixListener,
    shell: Shell,
}

/// A socket nobody listens on is left over from a process that was killed: its name may be taken.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            let dead = matches!(
                UnixStream::connect(path).map_err(|error| error.kind()),
                Err(io::ErrorKind::ConnectionRefused)
            );
            if !is_socket || !dead {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

impl Server {
    /// Listens at `path` for front ends of `core`, and starts the device's thread.
    ///
    /// # Errors
    /// [`ServerError`]
    pub fn new(path: &Path, core: Box<dyn DeviceCore>) -> Result<Self, ServerError> {
        Self::from_listener(bind(path).map_err(ServerError::Listen)?, core)
    }

    /// As [`Self::new`], on a socket that listens already.
    ///
    /// # Errors
    /// [`ServerError`]
    pub fn from_listener(listener: UnixListener, core: Box<dyn DeviceCore>) -> Result<Self, ServerError> {
        let name = core.info().name;
        Ok(Self { listener, shell: Shell::new(name, core, Arc::new(Unobserved))? })
    }

    /// Waits for a front end and serves it until it goes. `report` hears of refused requests.
    ///
    /// # Errors
    /// The socket failed, or the device is lost. A front end that misbehaves or goes is not an error.
    pub fn serve_one(&self, report: &mut dyn FnMut(&dyn fmt::Display)) -> Result<(), ServerError> {
        let (stream, _) = self.listener.accept().map_err(ServerError::Listen)?;
        self.shell.serve(stream, report)
    }

    /// Serves one front end after the other, for ever.
    ///
    /// # Errors
    /// As [`Self::serve_one`].
    pub fn serve(&self, report: &mut dyn FnMut(&dyn fmt::Display)) -> Result<(), ServerError> {
        loop {
            self.serve_one(report)?;
        }
    }
}
