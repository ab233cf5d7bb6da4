//! The hidden subcommand: a single-threaded process that does one thing and ends.
//!
//! libcontainer forks and changes namespaces, roots and users of its own process, which only a process without
//! threads and without an event loop may do; and whoever binds a device may wait for it for ever. The helper reads one
//! request from its standard input (a seqpacket socket to the agent), answers, and exits. A process that it made
//! becomes a child of the agent, PID 1.

mod create;
mod join;
pub mod pool;
mod program;
mod slot;
mod trace;
pub mod wire;

use std::fs::{File, OpenOptions};
use std::io::Seek;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use libcgroups::common::{CgroupManager, ControllerOpt};
use nix::fcntl::{FcntlArg, fcntl};

use crate::descriptor::{receive_with_fds, send_with_fds};
use crate::oci::status::StatusWriter;
use crate::stdio::ChildEnds;
use wire::{Answer, MAX_ANSWER, Request, Update};

/// First argument of the agent that makes it a helper.
pub const SUBCOMMAND: &str = "helper";

/// Errors inside the helper are sentences for the answer.
type Result<T> = std::result::Result<T, String>;

/// Runs one request.
pub fn main() -> ExitCode {
    // SAFETY: SIG_DFL is a valid disposition. Rust ignores SIGPIPE at start-up; container processes must not.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let Ok(socket) = take_stdin() else {
        return ExitCode::FAILURE;
    };
    match receive(socket.as_fd()).and_then(|(request, fds)| serve(request, fds)) {
        Ok((told, terminal)) => {
            answer(socket.as_fd(), &told, terminal.as_ref());
            ExitCode::SUCCESS
        }
        Err(text) => {
            answer(socket.as_fd(), &Answer::Failed(text), None);
            ExitCode::FAILURE
        }
    }
}

/// Moves the socket away from descriptor 0, which belongs to the container's process.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let raw = fcntl(0, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the duplicate has just been made; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2(null.as_raw_fd(), 0)?;
    Ok(socket)
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Request, Vec<OwnedFd>)> {
    let mut byte = [0; 1];
    let (count, mut fds) = receive_with_fds(socket, &mut byte).map_err(|e| e.to_string())?;
    if count == 0 || fds.is_empty() {
        return Err("The agent sent no request".to_owned());
    }
    let mut document = File::from(fds.remove(0));
    document.rewind().map_err(|e| e.to_string())?;
    let request = serde_json::from_reader(std::io::BufReader::new(document))
        .map_err(|error| format!("The request is not understood: {error}"))?;
    Ok((request, fds))
}

/// The answer, and the terminal of a process that has one.
fn serve(request: Request, fds: Vec<OwnedFd>) -> Result<(Answer, Option<OwnedFd>)> {
    let (pid, terminal) = match request {
        Request::Update(update) => return apply_limits(&update).map(|()| (Answer::Done, None)),
        Request::Bind(device) => return Ok((slot::bind(&device), None)),
        Request::Unbind(device) => return Ok((slot::unbind(&device), None)),
        Request::Create(request) => {
            let (ends, status) = process_fds(fds)?;
            create::run(&request, ends, status)?
        }
        Request::Exec(request) => {
            let (ends, status) = process_fds(fds)?;
            join::run(&request, ends, status)?
        }
    };
    Ok((Answer::Pid(pid), terminal))
}

fn process_fds(fds: Vec<OwnedFd>) -> Result<(ChildEnds, StatusWriter)> {
    let [stdin, stdout, stderr, status]: [OwnedFd; 4] = fds
        .try_into()
        .map_err(|fds: Vec<_>| format!("The request came with {} descriptors", fds.len()))?;
    let ends = ChildEnds {
        stdin,
        stdout,
        stderr,
    };
    Ok((ends, StatusWriter::new(status)))
}

fn answer(socket: BorrowedFd<'_>, answer: &Answer, terminal: Option<&OwnedFd>) {
    let mut bytes = serde_json::to_vec(answer).unwrap_or_default();
    if bytes.len() > MAX_ANSWER {
        let short = Answer::Failed("The reason is too long to be told".to_owned());
        bytes = serde_json::to_vec(&short).unwrap_or_default();
    }
    let fds: Vec<BorrowedFd<'_>> = terminal.iter().map(|fd| fd.as_fd()).collect();
    // The agent sees the helper end if this fails.
    let _ = send_with_fds(socket, &bytes, &fds);
}

/// UpdateContainer: writes the limits that the resources name.
fn apply_limits(update: &Update) -> Result<()> {
    let resources = serde_json::from_value(update.resources.clone())
        .map_err(|error| format!("linux.resources is not understood: {error}"))?;
    let manager = libcgroups::v2::manager::Manager::new(
        crate::paths::CGROUP_ROOT.into(),
        update.cgroup.clone(),
    )
    .map_err(|error| error.to_string())?;
    let options = ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager.apply(&options).map_err(|error| error.to_string())
}
