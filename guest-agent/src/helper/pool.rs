//! The agent's side of its helpers: starts them, gives each its one request and awaits the answer. One is always kept
//! ready, because executing the agent again is the slow part of an exec.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::SUBCOMMAND;
use super::wire::{Answer, MAX_ANSWER, Request};
use crate::descriptor::{self, Descriptor};
use crate::errors::{AgentError, Context, Result};
use crate::sync::lock;

/// One per agent, for its whole life.
#[derive(Default)]
pub struct Helpers {
    spare: Mutex<Option<Descriptor>>,
}

impl Helpers {
    /// Starts the spare helper unless there is one.
    pub fn prepare_spare(&self) {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            match spawn() {
                Ok(helper) => *spare = Some(helper),
                Err(error) => crate::warning!("{error}"),
            }
        }
    }

    /// Sends a request with its descriptors to a helper and waits for its answer, as long as that takes.
    pub async fn ask(
        &self,
        request: &Request,
        ends: Vec<OwnedFd>,
    ) -> Result<(Answer, Option<OwnedFd>)> {
        let spare = lock(&self.spare).take();
        let helper = match spare {
            Some(helper) => helper,
            None => spawn()?,
        };
        {
            let document = memfd_with(request)?;
            let mut fds = vec![document.as_fd()];
            fds.extend(ends.iter().map(AsFd::as_fd));
            descriptor::send_with_fds(helper.as_fd(), b"r", &fds)
                .context("Sending a request to the helper")?;
        }
        // The process must be the only holder of its ends, or their end would never come.
        drop(ends);
        let mut buffer = vec![0; MAX_ANSWER];
        let (count, mut fds) = helper
            .when_readable(|fd| descriptor::receive_with_fds(fd, &mut buffer))
            .await
            .context("Reading the helper's answer")?;
        if count == 0 {
            return Err(AgentError::internal("The helper died without an answer"));
        }
        let answer =
            serde_json::from_slice(&buffer[..count]).context("Decoding the helper's answer")?;
        Ok((answer, fds.pop()))
    }
}

/// Executes the agent again as a helper; it waits for its request on its standard input.
fn spawn() -> Result<Descriptor> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .context("Making a socketpair")?;
    // Its exit is seen, and ignored, by the reaper.
    Command::new("/proc/self/exe")
        .arg0("strato-agent")
        .arg(SUBCOMMAND)
        .stdin(Stdio::from(theirs))
        .spawn()
        .context("Starting a helper")?;
    Descriptor::new(ours).context("Registering a helper")
}

fn memfd_with(request: &Request) -> Result<OwnedFd> {
    let fd = memfd_create(c"request", MemFdCreateFlag::MFD_CLOEXEC).context("Making a memfd")?;
    let mut file = std::fs::File::from(fd);
    serde_json::to_writer(std::io::BufWriter::new(&file), request).context("Writing a request")?;
    file.flush().context("Writing a request")?;
    Ok(file.into())
}
