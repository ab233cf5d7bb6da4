//! The seam to the OCI library: what the agent needs of one, and nothing of how it is done.
//!
//! The one implementation is [`libcontainer::Library`]; another (crun, own code) would be one more file here.

pub mod libcontainer;
pub mod spec;
pub mod status;

use std::os::fd::OwnedFd;

use async_trait::async_trait;

use self::status::StatusPipe;
use crate::cgroup::Cgroup;
use crate::errors::Result;
use crate::reaper::{ProcessKey, Ticket};
use crate::stdio::ChildEnds;

/// A container whose bundle lies ready.
pub struct CreateOrder {
    pub key: ProcessKey,
    pub ends: ChildEnds,
    pub terminal: bool,
    /// Rows and columns, 0 is unset.
    pub terminal_size: (u16, u16),
    pub cwd: String,
}

/// A further process of a running container.
pub struct ExecOrder {
    pub key: ProcessKey,
    pub ends: ChildEnds,
    pub terminal_size: (u16, u16),
    /// OCI `process` and, where the container has one, `linux.seccomp`.
    pub process: serde_json::Value,
    pub seccomp: Option<serde_json::Value>,
    pub init_pid: i32,
    pub cgroup: Cgroup,
    /// Has a user or time namespace of its own, which cannot be joined when it is the agent's own.
    pub own_user_namespace: bool,
    pub own_time_namespace: bool,
}

/// A process that exists: an init that waits for its start, or an exec on its way to its program.
pub struct Prepared {
    pub pid: i32,
    pub terminal: Option<OwnedFd>,
    /// Tells when the program has been executed, or why it was not.
    pub status: StatusPipe,
}

/// Called with the pid before anything else can happen between the helper's answer and the caller.
pub type OnPid<'a> = &'a (dyn Fn(Ticket, i32) + Send + Sync);

/// Hands out tickets for exits that may precede the pid's report.
pub trait Tickets: Send + Sync {
    fn open(&self) -> Ticket;
    fn close(&self, ticket: Ticket);
}

#[async_trait]
pub trait OciRuntime: Send + Sync {
    /// Makes namespaces, mounts, limits and init up to its last step; reports what stands in the way in words.
    async fn create(&self, order: CreateOrder, on_pid: OnPid<'_>) -> Result<Prepared>;
    /// Lets init go on.
    async fn start(&self, container_id: &str) -> Result<()>;
    /// Starts a process inside a container.
    async fn exec(&self, order: ExecOrder, on_pid: OnPid<'_>) -> Result<Prepared>;
    /// Applies new limits (OCI `linux.resources`).
    async fn update(&self, cgroup: &Cgroup, resources: serde_json::Value) -> Result<()>;
}
