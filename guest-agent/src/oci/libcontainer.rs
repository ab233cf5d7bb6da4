//! [`OciRuntime`] by libcontainer, which runs only in helpers: single-threaded re-executions of the agent, one per
//! create, exec or update (`helper/pool.rs`).

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::status::{Failure, StatusPipe};
use super::{CreateOrder, ExecOrder, OciRuntime, OnPid, Prepared, Tickets};
use crate::cgroup::Cgroup;
use crate::errors::{AgentError, Context, ErrorKind, Result};
use crate::helper::pool::Helpers;
use crate::helper::wire::{Answer, Create, Exec, Request, Update};
use crate::paths;
use crate::stdio::ChildEnds;

/// Helpers at work at a time: more would only take turns on the guest's few CPUs, and each needs memory.
const MAX_HELPERS: usize = 8;

pub struct Library {
    tickets: Arc<dyn Tickets>,
    helpers: Arc<Helpers>,
    places: Semaphore,
}

impl Library {
    pub fn new(tickets: Arc<dyn Tickets>, helpers: Arc<Helpers>) -> Self {
        Self {
            tickets,
            helpers,
            places: Semaphore::new(MAX_HELPERS),
        }
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
        let answered = self
            .helpers
            .ask(
                &request,
                vec![ends.stdin, ends.stdout, ends.stderr, status_end],
            )
            .await;
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
            Ok(_) => Err(AgentError::internal("The helper answered without a pid")),
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
        match self.helpers.ask(&request, Vec::new()).await? {
            (Answer::Failed(text), _) => Err(AgentError::invalid(text)),
            _ => Ok(()),
        }
    }
}
