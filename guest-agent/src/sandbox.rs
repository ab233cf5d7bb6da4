//! The sandbox: all containers, the exits of all processes, and what the host may do with them.
//!
//! One per guest, for its whole life; called by the RPC service and by the reaper. The state is behind one lock that
//! is never held across an await. Operations that change it run to their end even when the host's connection breaks
//! (the service runs them as tasks of their own).

mod lifecycle;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::container::Container;
use crate::errors::{AgentError, Result};
use crate::events::EventLog;
use crate::oci::{OciRuntime, Tickets};
use crate::proto::agent::{
    CreateSandboxRequest, Process as ProcessInfo, ProcessExit, StatsContainerResponse,
};
use crate::reaper::{Exit, ExitBook, ProcessKey, Ticket};
use crate::stdio::table::StreamTable;
use crate::sync::lock;
use crate::{clock, network, oom, sysinfo};

#[derive(Default)]
struct State {
    containers: HashMap<String, Slot>,
    shares: Vec<String>,
}

/// A container's place; taken from the first moment of its creation to the last of its removal.
enum Slot {
    Busy,
    Ready(Box<Container>),
}

pub struct Sandbox {
    state: Mutex<State>,
    exits: Arc<Exits>,
    oci: Arc<dyn OciRuntime>,
    pub events: Arc<EventLog>,
    pub streams: Arc<StreamTable>,
    oom: oom::Watch,
}

/// The exit book behind its lock, shared with the OCI runtime.
#[derive(Default)]
pub struct Exits(Mutex<ExitBook>);

impl Tickets for Exits {
    fn open(&self) -> Ticket {
        lock(&self.0).open()
    }

    fn close(&self, ticket: Ticket) {
        lock(&self.0).close(ticket);
    }
}

impl Sandbox {
    pub fn new(exits: Arc<Exits>, oci: Arc<dyn OciRuntime>, oom: oom::Watch) -> Self {
        Self {
            state: Mutex::default(),
            exits,
            oci,
            events: Arc::default(),
            streams: Arc::default(),
            oom,
        }
    }

    /// Clock, randomness, names, shares.
    pub fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<()> {
        if request.wall_clock_ns != 0 {
            clock::set_wall_ns(request.wall_clock_ns)?;
        }
        sysinfo::add_entropy(&request.entropy)?;
        if !request.hostname.is_empty() {
            sysinfo::set_hostname(&request.hostname)?;
        }
        if !request.resolv_conf.is_empty() {
            sysinfo::write_resolv_conf(&request.resolv_conf)?;
        }
        for share in &request.shares {
            let known = lock(&self.state).shares.contains(&share.mount_point);
            if !known {
                sysinfo::mount_share(share)?;
                lock(&self.state).shares.push(share.mount_point.clone());
            }
        }
        Ok(())
    }

    /// Removes every container, unmounts the shares and writes everything out. The host ends the machine.
    pub async fn destroy(&self) -> Result<()> {
        let ids: Vec<String> = lock(&self.state).containers.keys().cloned().collect();
        let mut first_error = None;
        for id in ids {
            if let Err(error) = self.remove_container(&id).await {
                first_error.get_or_insert(error);
            }
        }
        let shares = std::mem::take(&mut lock(&self.state).shares);
        for share in shares.iter().rev() {
            if let Err(errno) =
                nix::mount::umount2(share.as_str(), nix::mount::MntFlags::MNT_DETACH)
            {
                crate::warning!("Unmounting {share}: {errno}");
            }
        }
        nix::unistd::sync();
        first_error.map_or(Ok(()), Err)
    }

    /// A child of the agent died.
    pub fn child_died(&self, pid: i32, exit: Exit) {
        let owner = lock(&self.exits.0).died(pid, exit);
        if let Some(key) = owner {
            self.process_died(&key, exit);
        }
    }

    fn process_died(&self, key: &ProcessKey, exit: Exit) {
        // Forgotten meanwhile: nobody is left to be told.
        let _ = self.with_container(&key.container_id, |container| {
            container.died(&key.exec_id, exit, &self.events);
            Ok(())
        });
    }

    /// memory.events of a container changed.
    pub fn memory_events_changed(&self, container_id: &str) {
        let _ = self.with_container(container_id, |container| {
            container.tell_oom(&self.events);
            Ok(())
        });
    }

    fn with_container<T>(
        &self,
        id: &str,
        action: impl FnOnce(&mut Container) -> Result<T>,
    ) -> Result<T> {
        match lock(&self.state).containers.get_mut(id) {
            Some(Slot::Ready(container)) => action(container),
            Some(Slot::Busy) => Err(AgentError::precondition(format!(
                "Container {id} is being created or removed"
            ))),
            None => Err(AgentError::not_found(format!(
                "Container {id} does not exist"
            ))),
        }
    }

    pub fn signal(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let signal = i32::try_from(signal)
            .map_err(|_| AgentError::invalid(format!("{signal} is not a signal")))?;
        self.with_container(id, |container| {
            if all {
                container.signal_all(signal)
            } else {
                container.signal(exec_id, signal)
            }
        })
    }

    /// Waits until the process has ended; at once when it has.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<ProcessExit> {
        let mut exit = self.with_container(id, |container| {
            Ok(container.process(exec_id)?.exit.subscribe())
        })?;
        let gone = |_| AgentError::not_found(format!("Process {id}/{exec_id} was removed"));
        let told = exit.wait_for(Option::is_some).await.map_err(gone)?;
        told.clone()
            .ok_or_else(|| AgentError::internal(format!("Process {id}/{exec_id} has no exit")))
    }

    pub fn resize(&self, id: &str, exec_id: &str, rows: u32, columns: u32) -> Result<()> {
        let size = |value: u32| {
            u16::try_from(value).map_err(|_| {
                AgentError::invalid(format!("{rows}x{columns} is not a terminal size"))
            })
        };
        let (rows, columns) = (size(rows)?, size(columns)?);
        self.with_container(id, |container| {
            container.process(exec_id)?.streams.resize(rows, columns)
        })
    }

    pub fn close_stdin(&self, id: &str, exec_id: &str, after_bytes: u64) -> Result<()> {
        self.with_container(id, |container| {
            container.process(exec_id)?.streams.close_stdin(after_bytes);
            Ok(())
        })
    }

    pub fn list_processes(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        self.with_container(id, |container| Ok(container.list()))
    }

    pub fn stats(&self, id: &str) -> Result<StatsContainerResponse> {
        self.with_container(id, |container| {
            let interfaces = if container.init.is_alive() {
                network::interface_stats(container.init.pid)
            } else {
                Vec::new()
            };
            Ok(StatsContainerResponse {
                cpu: Some(container.cgroup.cpu_stats()).into(),
                memory: Some(container.cgroup.memory_stats()).into(),
                pids: Some(container.cgroup.pids_stats()).into(),
                io: container.cgroup.io_stats(),
                interfaces,
                ..Default::default()
            })
        })
    }

    /// Freezes or thaws a container.
    pub async fn freeze(&self, id: &str, frozen: bool) -> Result<()> {
        let cgroup = self.with_container(id, |container| {
            container.require_running()?;
            Ok(container.cgroup.clone())
        })?;
        cgroup.freeze(frozen).await
    }

    /// Applies new limits.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let resources: serde_json::Value = serde_json::from_slice(resources).map_err(|error| {
            AgentError::invalid(format!("linux.resources is not JSON: {error}"))
        })?;
        if !resources.is_object() {
            return Err(AgentError::invalid("linux.resources is not an object"));
        }
        let cgroup = self.with_container(id, |container| Ok(container.cgroup.clone()))?;
        self.oci.update(&cgroup, resources).await
    }
}
