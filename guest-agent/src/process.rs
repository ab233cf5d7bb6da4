//! One process of a container, init or exec: where it is in its life, and what of it the host may ask.
//!
//! ```text
//! exec:  Registered ─→ Starting ─→ Running ─→ Exited
//! init:  Created    ─→ Starting ─→ Running ─→ Exited        (Created ─→ Exited when killed before its start)
//!                      Starting ─→ Failed                   its program was never executed: no exit is told
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use crate::oci::status::StatusPipe;
use crate::proto::agent::ProcessExit;
use crate::reaper::{Exit, ProcessKey};
use crate::stdio::{ChildEnds, Streams};

/// What an exec needs to be started.
pub struct ExecPlan {
    pub process: serde_json::Value,
    pub ends: ChildEnds,
}

pub enum Phase {
    Registered(Box<ExecPlan>),
    Created,
    Starting,
    Running,
    Exited,
    Failed,
}

pub struct Process {
    pub key: ProcessKey,
    pub phase: Phase,
    /// 0 until it exists.
    pub pid: i32,
    pub streams: Streams,
    pub status: Option<Arc<StatusPipe>>,
    /// Some once it is told; everyone who waits watches it.
    pub exit: watch::Sender<Option<ProcessExit>>,
}

impl Process {
    pub fn new(key: ProcessKey, phase: Phase, streams: Streams) -> Self {
        Self {
            key,
            phase,
            pid: 0,
            streams,
            status: None,
            exit: watch::channel(None).0,
        }
    }

    /// There is a process with this pid that has not been reaped.
    pub fn is_alive(&self) -> bool {
        self.pid > 0
            && matches!(
                self.phase,
                Phase::Created | Phase::Starting | Phase::Running
            )
    }

    /// The exit as the host gets it, with the counts of this moment.
    pub fn exit_message(&self, exit: Exit) -> ProcessExit {
        let (stdout_bytes, stderr_bytes) = self.streams.settle();
        ProcessExit {
            container_id: self.key.container_id.clone(),
            exec_id: self.key.exec_id.clone(),
            pid: self.pid,
            status: exit.status,
            exited_at_ns: exit.at_ns,
            stdout_bytes,
            stderr_bytes,
            ..Default::default()
        }
    }
}
