//! A listening socket with a device behind it.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use strato_virtio::{DeviceCore, DeviceHost, Worker};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::early::Early;
use crate::notifier::CallNotifier;
use crate::session::Session;

/// Why a device cannot be served.
#[derive(Debug)]
pub enum ServerError {
    /// The listening socket.
    Listen(io::Error),
    /// The device could not be set up on this host.
    Device(io::Error),
    /// The device's thread has ended.
    Worker,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen(_) => "Cannot listen for the front end",
            Self::Device(_) => "Cannot set the device up",
            Self::Worker => "Device thread has ended",
        })
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen(error) | Self::Device(error) => Some(error),
            Self::Worker => None,
        }
    }
}

/// One device on one socket, one front end at a time.
pub struct Server {
    listener: UnixListener,
    session: Arc<Mutex<Session>>,
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
        let info = core.info().clone();
        let notifier = CallNotifier::new(info.queue_sizes.len());
        let host = DeviceHost::new(core, Box::new(notifier.clone())).map_err(ServerError::Device)?;
        let worker = Worker::start(info.name, host).map_err(ServerError::Device)?;
        let session = Arc::new(Mutex::new(Session::new(worker, info, notifier)));
        Ok(Self { listener, session })
    }

    /// Waits for a front end and serves it until it goes. `report` hears of refused requests.
    ///
    /// # Errors
    /// The socket failed, or the device is lost. A front end that misbehaves or goes is not an error.
    pub fn serve_one(&self, report: &mut dyn FnMut(&dyn fmt::Display)) -> Result<(), ServerError> {
        let (stream, _) = self.listener.accept().map_err(ServerError::Listen)?;
        let mut early = Early::new(&stream).map_err(ServerError::Listen)?;
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&self.session));
        let outcome = loop {
            let done = early.carry_out(&*self.session);
            let done = done.and_then(|done| if done { Ok(()) } else { requests.handle_request() });
            match done {
                Ok(()) => {}
                Err(ProtocolError::Disconnected) => break Ok(()),
                Err(ProtocolError::BackendInternalError) => break Err(ServerError::Worker),
                Err(
                    error @ (ProtocolError::InvalidOperation(_)
                    | ProtocolError::InvalidParam
                    | ProtocolError::ReqHandlerError(_)),
                ) => report(&error),
                Err(error) => {
                    report(&error);
                    break Ok(());
                }
            }
        };
        self.session.lock().unwrap_or_else(PoisonError::into_inner).disconnected();
        outcome
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
