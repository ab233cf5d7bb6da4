//! The conversation of a device with one vhost-user front end, on a thread of its own.

use std::fmt::Display;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use strato_jail::Role;
use strato_vhost_user::Shell;
use strato_virtio::panic_text;
use strato_virtio::thread::spawn;

use super::{Reporter, chain};
use crate::events::EventKind;

/// The socket that a conversation stands on: first one that listens perhaps, then the connection.
struct Line {
    stream: UnixStream,
    ended: bool,
}

pub(super) struct Conversation {
    line: Arc<Mutex<Line>>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Conversation {
    /// Begins one on `socket`, which may listen: then the first connection is served.
    ///
    /// # Errors
    /// No descriptor or thread.
    pub(super) fn begin(
        device: &str,
        socket: OwnedFd,
        shell: Arc<Shell>,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        let line = Arc::new(Mutex::new(Line { stream, ended: false }));
        let theirs = Arc::clone(&line);
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        let thread = spawn(Some(Role::Service), &thread_name(device), move || {
            let (kind, text) = converse(&shell, &reporter, &theirs);
            // Before it is told: whoever hears of it may serve the next front end at once.
            flag.store(true, Ordering::Release);
            reporter.push(kind, &text);
        })?;
        Ok(Self { line, over, thread })
    }

    /// Whether the front end has gone, or was never there.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends it: the device comes to rest, and its thread is waited for.
    pub(super) fn end(self) {
        {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            line.ended = true;
            // Fails when the front end has gone already; then the thread ends anyway. One that listens wakes up.
            let _ = line.stream.shutdown(Shutdown::Both);
        }
        // Its panics are caught and reported inside.
        let _ = self.thread.join();
    }
}

/// The device's own thread has its name; this one is to be told from it within what the kernel shows.
fn thread_name(device: &str) -> String {
    format!("vu-{device}")
}

/// The connection: the socket itself, or the first that comes to it.
fn connected(line: &Mutex<Line>) -> io::Result<UnixStream> {
    let socket = line.lock().unwrap_or_else(PoisonError::into_inner).stream.try_clone()?;
    if !listens(&socket)? {
        return Ok(socket);
    }
    let (stream, _) = UnixListener::from(OwnedFd::from(socket)).accept()?;
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    if line.ended {
        return Err(io::ErrorKind::Interrupted.into());
    }
    // The listener goes: nobody else is to connect.
    line.stream = stream.try_clone()?;
    Ok(stream)
}

fn listens(socket: &UnixStream) -> io::Result<bool> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: pointer and length are those of `value`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &mut len,
        )
    };
    if outcome == 0 { Ok(value != 0) } else { Err(io::Error::last_os_error()) }
}

fn converse(shell: &Shell, reporter: &Reporter, line: &Mutex<Line>) -> (EventKind, String) {
    let both = connected(line).and_then(|stream| Ok((stream.try_clone()?, stream)));
    let (served, stream) = match both {
        Ok(both) => both,
        Err(error) if line.lock().unwrap_or_else(PoisonError::into_inner).ended => {
            return (EventKind::FrontEndGone, format!("Front end has not come: {error}"));
        }
        Err(error) => return (EventKind::Lost, format!("Front end cannot be served: {error}")),
    };
    let mut refused = |what: &dyn Display| reporter.push(EventKind::Refused, &what.to_string());
    let outcome = catch_unwind(AssertUnwindSafe(|| shell.serve(served, &mut refused)));
    // The owner keeps a descriptor of the same socket: without this a front end would wait for ever.
    let _ = stream.shutdown(Shutdown::Both);
    match outcome {
        Ok(Ok(())) => (EventKind::FrontEndGone, "Front end has gone".to_owned()),
        Ok(Err(error)) => (EventKind::Lost, chain(&error)),
        Err(panic) => (EventKind::Panicked, panic_text(panic.as_ref())),
    }
}
