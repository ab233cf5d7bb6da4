//! One device behind the protocol: its thread, its session, and the conversation with a front end.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strato_virtio::{DeviceCore, DeviceHost, Observer, Worker};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::channel::{reply, take_request};
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

/// One device, one front end at a time.
pub struct Shell {
    session: Arc<Mutex<Session>>,
}

impl Shell {
    /// Starts the device's thread, which shows as `name`.
    ///
    /// # Errors
    /// [`ServerError::Device`]
    pub fn new(
        name: &str,
        core: Box<dyn DeviceCore>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ServerError> {
        let info = core.info().clone();
        let notifier = CallNotifier::new(info.queue_sizes.len(), Arc::clone(&observer));
        let host = DeviceHost::new(core, Box::new(notifier.clone())).map_err(ServerError::Device)?;
        let worker = Worker::start_watched(name, host, move |end| observer.ended(end));
        let session = Session::new(worker.map_err(ServerError::Device)?, info, notifier);
        Ok(Self { session: Arc::new(Mutex::new(session)) })
    }

    /// Serves the front end at the other end of `stream` until it goes; the device has then come to rest.
    /// `report` hears of refused requests.
    ///
    /// # Errors
    /// The device is lost. A front end that misbehaves or goes is not an error.
    pub fn serve(
        &self,
        stream: UnixStream,
        report: &mut dyn FnMut(&dyn fmt::Display),
    ) -> Result<(), ServerError> {
        let (connection, mut early) = match stream.try_clone().and_then(|own| Ok((own, Early::new(&stream)?)))
        {
            Ok(both) => both,
            Err(error) => {
                report(&error);
                return Ok(());
            }
        };
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&self.session));
        let outcome = loop {
            match take_request(&connection) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    let (accepted, answer) = self.session().set_channel(request);
                    if answer && reply(&connection, accepted).is_err() {
                        break Ok(());
                    }
                    continue;
                }
                Err(error) => {
                    report(&error);
                    break Ok(());
                }
            }
            let early = early.carry_out(&*self.session);
            match early.and_then(|done| if done { Ok(()) } else { requests.handle_request() }) {
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
        self.session().disconnected();
        outcome
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        // Crate `vhost` locks it for one request at a time and would panic itself if it were poisoned.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
