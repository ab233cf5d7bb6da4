//! What agent and helper say to each other: one request, one answer, over a seqpacket socketpair.
//!
//! The request is JSON in a memfd (a seccomp profile would not fit in a message), passed with the process's stdio
//! and the status pipe if a process is to be made; the answer is JSON, with the terminal's master beside it when there
//! is one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::errors::AgentError;

/// Longest answer, bytes.
pub const MAX_ANSWER: usize = 16384;

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Descriptors: request, stdin, stdout, stderr, status.
    Create(Create),
    /// Descriptors: request, stdin, stdout, stderr, status.
    Exec(Box<Exec>),
    /// Descriptors: request.
    Update(Update),
    /// The name of a slot's platform device, checked. Descriptors: request.
    Bind(String),
    /// The same.
    Unbind(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    pub container_id: String,
    pub bundle: PathBuf,
    pub terminal: bool,
    pub terminal_size: (u16, u16),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    pub process: serde_json::Value,
    pub seccomp: Option<serde_json::Value>,
    pub init_pid: i32,
    pub cgroup: PathBuf,
    pub terminal_size: (u16, u16),
    pub own_user_namespace: bool,
    pub own_time_namespace: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Update {
    /// Relative to the cgroup root.
    pub cgroup: PathBuf,
    pub resources: serde_json::Value,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Pid(i32),
    Done,
    Bound(Bound),
    Failed(String),
    /// An answer that is the host's as it is.
    Refused(AgentError),
}

/// BoundDevice of agent.proto.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub virtio_id: u32,
    pub name: String,
    pub mac: String,
    pub serial: String,
}
