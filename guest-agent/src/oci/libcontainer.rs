//! [`OciRuntime`] by libcontainer, which runs only in helpers: single-threaded re-executions of the agent, one per
//! create, exec or update, over a socketpair. One helper is kept ready, because executing the agent again is the
//! slow part of an exec.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::sync::Semaphore;

use super::status::{Failure, StatusPipe};
use super::wire::{Answer, Create, Exec, MAX_ANSWER, Request, Update};
use super::{CreateOrder, ExecOrder, OciRuntime, OnPid, Prepared, Tickets};
use crate::cgroup::Cgroup;
use crate::descriptor::{self, Descriptor};
use crate::errors::{AgentError, Context, ErrorKind, Result};
use crate::helper::SUBCOMMAND;
use crate::paths;
use crate::stdio::ChildEnds;
use crate::sync::lock;

/// Helpers at work at a time: more would only take turns on the guest's few CPUs, and each needs memory.
const MAX_HELPERS: usize = 8;

pub struct Library {
    tickets: Arc<dyn Tickets>,
    places: Semaphore,
    spare: Mutex<Option<Descriptor>>,
}

impl Library {
    pub fn new(tickets: Arc<dyn Tickets>) -> Self {
        Self {
            tickets,
            places: Semaphore::new(MAX_HELPERS),
            spare: Mutex::new(None),
        }
    }

    /// Starts the spare helper unless there is one.
    pub fn prepare_spare(&self) {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            match spawn_helper() {
                Ok(helper) => *spare = Some(helper),
                Err(error) => crate::warning!("{error}"),
            }
        }
    }

    /// Sends a request to a helper and waits for its answer.
    async fn ask(
        &self,
        request: &Request,
        ends: Option<ChildEnds>,
        status: Option<OwnedFd>,
    ) -> Result<(Answer, Option<OwnedFd>)> {
        let spare = lock(&self.spare).take();
        let helper = match spare {
            Some(helper) => helper,
            None => spawn_helper()?,
        };
        {
            let document = memfd_with(request)?;
            let mut fds = vec![document.as_fd()];
            if let (Some(ends), Some(status)) = (&ends, &status) {
                fds.extend([
                    ends.stdin.as_fd(),
                    ends.stdout.as_fd(),
                    ends.stderr.as_fd(),
                    status.as_fd(),
                ]);
            }
            descriptor::send_with_fds(helper.as_fd(), b"r", &fds)
                .context("Sending a request to the helper")?;
        }
        // The process must be the only holder of its ends, or their end would never come.
        drop((ends, status));
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

    /// Create and exec: a request that answers with a pid.
    async fn ask_for_process(
        &self,
        request: Request,
        ends: ChildEnds,
        cwd: &str,
        on_pid: OnPid<'_>,
    ) -> Result<Prepared> {
        let _place = self
            .places
            .acquire()
            .await
            .context("Waiting for a helper")?;
        let (status, status_end) = StatusPipe::new()?;
        let ticket = self.tickets.open();
        let answered = self.ask(&request, Some(ends), Some(status_end)).await;
        let result = match answered {
            Ok((Answer::Pid(pid), terminal)) => {
                on_pid(ticket, pid);
                Ok(Prepared {
                    pid,
                    terminal,
                    status,
                })
            }
            Ok((Answer::Failed(text), _)) => Err(explain(status.failure_so_far(), &text, cwd)),
            Ok((Answer::Done, _)) => Err(AgentError::internal("The helper answered without a pid")),
            Err(error) => match status.failure_so_far() {
                Some(failure) => Err(explain(Some(failure), &error.message, cwd)),
                None => Err(error),
            },
        };
        self.tickets.close(ticket);
        result
    }
}

/// A failed preparation is the spec's fault as a rule: the binary, the cwd, a mount.
fn explain(failure: Option<Failure>, library: &str, cwd: &str) -> AgentError {
    let text = failure.map_or_else(
        || library.to_owned(),
        |failure| failure.in_words(library, cwd),
    );
    AgentError::new(ErrorKind::InvalidArgument, text)
}

#[async_trait]
impl OciRuntime for Library {
    async fn create(&self, order: CreateOrder, on_pid: OnPid<'_>) -> Result<Prepared> {
        let container_id = order.key.container_id;
        let request = Request::Create(Create {
            bundle: paths::bundle(&container_id),
            container_id,
            terminal: order.terminal,
            terminal_size: order.terminal_size,
        });
        self.ask_for_process(request, order.ends, &order.cwd, on_pid)
            .await
    }

    async fn start(&self, container_id: &str) -> Result<()> {
        // libcontainer's init waits for one connection to this socket.
        let path = paths::oci_state(container_id).join("notify.sock");
        let mut socket = UnixStream::connect(path).map_err(|error| {
            AgentError::precondition(format!(
                "Container {container_id} cannot be started: {error}"
            ))
        })?;
        socket
            .write_all(b"start container")
            .context("Starting the container")
    }

    async fn exec(&self, order: ExecOrder, on_pid: OnPid<'_>) -> Result<Prepared> {
        let cwd = order.process["cwd"].as_str().unwrap_or("/").to_owned();
        let request = Request::Exec(Box::new(Exec {
            process: order.process,
            seccomp: order.seccomp,
            init_pid: order.init_pid,
            cgroup: order.cgroup.directory().to_owned(),
            terminal_size: order.terminal_size,
            own_user_namespace: order.own_user_namespace,
            own_time_namespace: order.own_time_namespace,
        }));
        self.ask_for_process(request, order.ends, &cwd, on_pid)
            .await
    }

    async fn update(&self, cgroup: &Cgroup, resources: serde_json::Value) -> Result<()> {
        let _place = self
            .places
            .acquire()
            .await
            .context("Waiting for a helper")?;
        let relative = cgroup
            .directory()
            .strip_prefix(paths::CGROUP_ROOT)
            .context("Naming the cgroup")?;
        let request = Request::Update(Update {
            cgroup: relative.to_owned(),
            resources,
        });
        match self.ask(&request, None, None).await? {
            (Answer::Failed(text), _) => Err(AgentError::invalid(text)),
            _ => Ok(()),
        }
    }
}

/// Executes the agent again as a helper; it waits for its request on its standard input.
fn spawn_helper() -> Result<Descriptor> {
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
