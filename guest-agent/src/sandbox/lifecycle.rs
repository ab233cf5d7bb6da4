//! Creating, starting and removing containers and execs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::sync::Arc;

use super::{Sandbox, Slot};
use crate::container::Container;
use crate::errors::{AgentError, Context, ErrorKind, Result};
use crate::oci::spec::{self, ContainerSpec};
use crate::oci::status::StatusPipe;
use crate::oci::{CreateOrder, ExecOrder, Prepared};
use crate::process::{ExecPlan, Phase, Process};
use crate::reaper::{Exit, ProcessKey};
use crate::stdio::{Streams, Wanted};
use crate::sync::lock;
use crate::{device_filter, ids, paths};

impl Sandbox {
    /// Prepares a container up to its start; returns init's pid. Nothing is left behind when it fails.
    pub async fn create_container(&self, id: &str, oci_spec: &[u8], wanted: Wanted) -> Result<i32> {
        ids::check("Container id", id)?;
        match lock(&self.state).containers.entry(id.to_owned()) {
            Entry::Occupied(_) => {
                return Err(AgentError::new(
                    ErrorKind::AlreadyExists,
                    format!("Container {id} exists already"),
                ));
            }
            Entry::Vacant(place) => {
                place.insert(Slot::Busy);
            }
        }
        let created = self.prepare_container(id, oci_spec, wanted).await;
        if created.is_err() {
            forget_files(id);
            lock(&self.state).containers.remove(id);
        }
        created
    }

    async fn prepare_container(&self, id: &str, oci_spec: &[u8], wanted: Wanted) -> Result<i32> {
        let spec = ContainerSpec::parse(id, oci_spec, &wanted)?;
        let bundle = paths::bundle(id);
        fs::create_dir_all(&bundle).with_context(|| format!("Creating {}", bundle.display()))?;
        let config = serde_json::to_vec(&spec.json).context("Encoding the OCI spec")?;
        fs::write(bundle.join("config.json"), config).context("Writing config.json")?;
        let key = ProcessKey {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let (streams, ends) = Streams::new(&key, wanted, spec.owner, &self.streams, &self.events)?;
        let mut container = Container {
            id: id.to_owned(),
            init: Process::new(key.clone(), Phase::Created, streams),
            execs: HashMap::new(),
            cgroup: spec.cgroup.clone(),
            seccomp: spec.seccomp.clone(),
            own_user_namespace: spec.own_user_namespace,
            own_time_namespace: spec.own_time_namespace,
            oom_kills: 0,
            held_exit: None,
        };
        let order = CreateOrder {
            key: key.clone(),
            ends,
            terminal: wanted.terminal,
            terminal_size: wanted.size,
            cwd: spec.cwd.clone(),
        };
        let early_exit = std::sync::Mutex::new(None);
        let on_pid = |ticket, pid| {
            *lock(&early_exit) = lock(&self.exits.0).claim(ticket, pid, key.clone());
        };
        // Before the library: it finds the cgroup there, and no process of the container is ever without the rules.
        let prepared = match device_filter::install(&spec.cgroup, spec.resources()) {
            Ok(()) => self.oci.create(order, &on_pid).await,
            Err(error) => Err(error),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = spec.cgroup.remove().await;
                return Err(error);
            }
        };
        let pid = prepared.pid;
        let early_exit: Option<Exit> = lock(&early_exit).take();
        adopt(&mut container.init, prepared)?;
        self.oom.add(id, &container.cgroup);
        lock(&self.state)
            .containers
            .insert(id.to_owned(), Slot::Ready(Box::new(container)));
        if let Some(exit) = early_exit {
            self.process_died(&key, exit);
        }
        Ok(pid)
    }

    /// Registers a further process.
    pub fn exec(&self, id: &str, exec_id: &str, process: &[u8], wanted: Wanted) -> Result<()> {
        ids::check("Exec id", exec_id)?;
        let process = spec::parse_process(process, &wanted)?;
        self.with_container(id, |container| {
            if container.execs.contains_key(exec_id) {
                return Err(AgentError::new(
                    ErrorKind::AlreadyExists,
                    format!("Container {id} has a process {exec_id} already"),
                ));
            }
            container.require_running()?;
            let key = ProcessKey {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
            };
            let owner = spec::owner(&process);
            let (streams, ends) = Streams::new(&key, wanted, owner, &self.streams, &self.events)?;
            let plan = Box::new(ExecPlan { process, ends });
            let process = Process::new(key, Phase::Registered(plan), streams);
            container.execs.insert(exec_id.to_owned(), process);
            Ok(())
        })
    }

    /// Starts init (empty exec id) or a registered exec; returns its pid when its program has been executed.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<i32> {
        let (pid, status) = if exec_id.is_empty() {
            self.start_init(id).await?
        } else {
            self.start_exec(id, exec_id).await?
        };
        let failure = status.outcome().await;
        self.with_container(id, |container| {
            let process = container.process(exec_id)?;
            process.status = None;
            if let Some(failure) = failure {
                process.phase = Phase::Failed;
                return Err(AgentError::invalid(
                    failure.in_words("the program was not executed", ""),
                ));
            }
            // It may have ended by now; then it has run.
            if matches!(process.phase, Phase::Starting) {
                process.phase = Phase::Running;
            }
            Ok(pid)
        })
    }

    async fn start_init(&self, id: &str) -> Result<(i32, Arc<StatusPipe>)> {
        let started = self.with_container(id, |container| {
            let init = &mut container.init;
            match (&init.phase, &init.status) {
                (Phase::Created, Some(status)) => {
                    let status = Arc::clone(status);
                    init.phase = Phase::Starting;
                    Ok((init.pid, status))
                }
                (Phase::Exited | Phase::Failed, _) => Err(AgentError::precondition(format!(
                    "Container {id} has stopped"
                ))),
                _ => Err(AgentError::precondition(format!(
                    "Container {id} is started already"
                ))),
            }
        })?;
        self.oci.start(id).await?;
        Ok(started)
    }

    async fn start_exec(&self, id: &str, exec_id: &str) -> Result<(i32, Arc<StatusPipe>)> {
        let order = self.with_container(id, |container| self.exec_order(container, exec_id))?;
        let key = order.key.clone();
        let early_exit = std::sync::Mutex::new(None);
        let on_pid = |ticket, pid| {
            *lock(&early_exit) = lock(&self.exits.0).claim(ticket, pid, key.clone());
        };
        let prepared = self.oci.exec(order, &on_pid).await;
        let early_exit: Option<Exit> = lock(&early_exit).take();
        let adopted = self.with_container(id, |container| {
            let process = container.process(exec_id)?;
            let prepared = prepared.inspect_err(|_| process.phase = Phase::Failed)?;
            let pid = prepared.pid;
            adopt(process, prepared)?;
            let status = process.status.clone();
            if container.require_running().is_err() {
                // Init died meanwhile and its exit, the container's last, is told: nothing may run on.
                let _ = container.cgroup.kill_all();
                container.process(exec_id)?.phase = Phase::Failed;
                return Err(AgentError::precondition(format!(
                    "Container {id} has stopped"
                )));
            }
            if let Some(exit) = early_exit {
                container.died(exec_id, exit, &self.events);
            }
            status.map(|status| (pid, status)).ok_or_else(|| {
                AgentError::internal(format!("Process {id}/{exec_id} has no status pipe"))
            })
        })?;
        Ok(adopted)
    }

    fn exec_order(&self, container: &mut Container, exec_id: &str) -> Result<ExecOrder> {
        // Existence first: the host distinguishes "no such exec" from "the container has stopped".
        container.process(exec_id)?;
        container.require_running()?;
        if container.cgroup.is_frozen() {
            return Err(AgentError::precondition(format!(
                "Container {} is paused",
                container.id
            )));
        }
        let init_pid = container.init.pid;
        let (cgroup, seccomp) = (container.cgroup.clone(), container.seccomp.clone());
        let (own_user_namespace, own_time_namespace) =
            (container.own_user_namespace, container.own_time_namespace);
        let process = container.process(exec_id)?;
        match std::mem::replace(&mut process.phase, Phase::Starting) {
            Phase::Registered(plan) => Ok(ExecOrder {
                key: process.key.clone(),
                ends: plan.ends,
                terminal_size: process.streams.initial_size(),
                process: plan.process,
                seccomp,
                init_pid,
                cgroup,
                own_user_namespace,
                own_time_namespace,
            }),
            other => {
                process.phase = other;
                Err(AgentError::precondition(format!(
                    "Process {exec_id} is started already"
                )))
            }
        }
    }

    /// Forgets a finished exec. Unknown ones are no error.
    pub fn remove_exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let removed = self.with_container(id, |container| {
            if container.execs.get(exec_id).is_some_and(Process::is_alive) {
                return Err(AgentError::precondition(format!(
                    "Process {id}/{exec_id} is running"
                )));
            }
            Ok(container.execs.remove(exec_id))
        });
        match removed {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Kills what is left of a container and removes everything of it. Unknown ones are no error.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let cgroup = match self.with_container(id, |container| Ok(container.cgroup.clone())) {
            Ok(cgroup) => cgroup,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // The exits of what is killed here are told as others are, before the container is forgotten.
        let _ = cgroup.kill_all();
        self.all_ended(id).await;
        cgroup.remove().await?;
        self.oom.remove(id);
        forget_files(id);
        lock(&self.state).containers.remove(id);
        Ok(())
    }

    /// Waits until init and execs are reaped; the cgroup is killed already, and its removal bounds the time.
    async fn all_ended(&self, id: &str) {
        let waiting = self.with_container(id, |container| {
            let processes = std::iter::once(&container.init).chain(container.execs.values());
            Ok(processes
                .filter(|process| process.is_alive())
                .map(|process| process.exit.subscribe())
                .collect::<Vec<_>>())
        });
        for mut exit in waiting.unwrap_or_default() {
            let told = exit.wait_for(Option::is_some);
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), told).await;
        }
    }
}

/// Takes over a process that the OCI runtime has made.
fn adopt(process: &mut Process, prepared: Prepared) -> Result<()> {
    process.pid = prepared.pid;
    process.status = Some(Arc::new(prepared.status));
    match prepared.terminal {
        Some(master) => process.streams.attach_terminal(master),
        None => Ok(()),
    }
}

/// Bundle and library state; what is not there is no error.
fn forget_files(id: &str) {
    let _ = fs::remove_dir_all(paths::bundle(id));
    let _ = fs::remove_dir_all(paths::oci_state(id));
}
