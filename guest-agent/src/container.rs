//! One container: its init, its execs, its cgroup. Owned by the sandbox's state; all methods run under its lock.

use std::collections::HashMap;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::cgroup::Cgroup;
use crate::errors::{AgentError, Result};
use crate::events::EventLog;
use crate::process::{Phase, Process};
use crate::proto::agent::{OutOfMemory, Process as ProcessInfo, ProcessExit, event};
use crate::reaper::Exit;

pub struct Container {
    pub id: String,
    pub init: Process,
    pub execs: HashMap<String, Process>,
    pub cgroup: Cgroup,
    pub seccomp: Option<serde_json::Value>,
    pub own_user_namespace: bool,
    pub own_time_namespace: bool,
    /// Out-of-memory kills that the host has been told of.
    pub oom_kills: u64,
    /// Init's exit, held back until the execs that die with it are told.
    pub held_exit: Option<ProcessExit>,
}

impl Container {
    /// Init for an empty exec id.
    pub fn process(&mut self, exec_id: &str) -> Result<&mut Process> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        let id = &self.id;
        self.execs.get_mut(exec_id).ok_or_else(|| {
            AgentError::not_found(format!("Container {id} has no process {exec_id}"))
        })
    }

    /// Init runs, so that others may join it.
    pub fn require_running(&self) -> Result<()> {
        match self.init.phase {
            Phase::Running => Ok(()),
            Phase::Created | Phase::Starting => Err(AgentError::precondition(format!(
                "Container {} has not been started",
                self.id
            ))),
            _ => Err(AgentError::precondition(format!(
                "Container {} has stopped",
                self.id
            ))),
        }
    }

    /// A process of this container died: notes it and tells what may be told by now.
    pub fn died(&mut self, exec_id: &str, exit: Exit, events: &EventLog) {
        // The kernel counts before it kills, so a kill for want of memory is told before its victim's exit.
        self.tell_oom(events);
        let Ok(process) = self.process(exec_id) else {
            return;
        };
        let failed_to_start = matches!(process.phase, Phase::Starting)
            && process
                .status
                .as_ref()
                .is_some_and(|status| status.failure_so_far().is_some());
        if failed_to_start || matches!(process.phase, Phase::Failed) {
            process.phase = Phase::Failed;
            process.pid = 0;
        } else {
            let message = process.exit_message(exit);
            process.phase = Phase::Exited;
            process.pid = 0;
            if exec_id.is_empty() {
                // Processes that share another pid namespace outlive init; the container ends with it all the same.
                let _ = self.cgroup.kill_all();
                self.held_exit = Some(message);
            } else {
                tell_exit(process, message, events);
            }
        }
        self.tell_held_exit(events);
    }

    /// Init's exit is the container's last.
    fn tell_held_exit(&mut self, events: &EventLog) {
        if self.execs.values().any(Process::is_alive) {
            return;
        }
        if let Some(message) = self.held_exit.take() {
            tell_exit(&mut self.init, message, events);
        }
    }

    pub fn tell_oom(&mut self, events: &EventLog) {
        let kills = self.cgroup.oom_kills();
        if kills > self.oom_kills {
            self.oom_kills = kills;
            events.push(event::Kind::Oom(OutOfMemory {
                container_id: self.id.clone(),
                ..Default::default()
            }));
        }
    }

    /// Sends a signal to one process; 0 only asks whether it is there.
    pub fn signal(&mut self, exec_id: &str, signal: i32) -> Result<()> {
        let id = self.id.clone();
        let process = self.process(exec_id)?;
        if !process.is_alive() {
            return Err(AgentError::not_found(format!(
                "Process {id}/{exec_id} is not running"
            )));
        }
        // The pid is the process's own: it is reaped under the same lock.
        send(process.pid, signal)
    }

    /// Sends a signal to every process of the cgroup.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let pids = self.cgroup.pids();
        if pids.is_empty() {
            return Err(AgentError::not_found(format!(
                "Container {} has no processes",
                self.id
            )));
        }
        if signal == Signal::SIGKILL as i32 {
            return self.cgroup.kill_all().map_err(|error| {
                AgentError::internal(format!("Killing container {}: {error}", self.id))
            });
        }
        for pid in pids {
            // One that died meanwhile is no error.
            let _ = send(pid, signal);
        }
        Ok(())
    }

    pub fn list(&self) -> Vec<ProcessInfo> {
        let known = |pid: i32| self.execs.values().find(|exec| exec.pid == pid);
        self.cgroup
            .pids()
            .into_iter()
            .map(|pid| ProcessInfo {
                pid,
                exec_id: known(pid).map_or_else(String::new, |exec| exec.key.exec_id.clone()),
                command: std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .map_or_else(|_| String::new(), |comm| comm.trim_end().to_owned()),
                init: pid == self.init.pid,
                ..Default::default()
            })
            .collect()
    }
}

fn tell_exit(process: &mut Process, message: ProcessExit, events: &EventLog) {
    events.push(event::Kind::Exit(message.clone()));
    process.exit.send_replace(Some(message));
}

/// kill(2); nix knows no real-time signals.
fn send(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: kill takes two integers.
    let result = unsafe { libc::kill(pid, signal) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        Err(Errno::ESRCH) => Err(AgentError::not_found(format!("Process {pid} is gone"))),
        Err(Errno::EINVAL) => Err(AgentError::invalid(format!("{signal} is not a signal"))),
        Err(errno) => Err(AgentError::internal(format!(
            "Signalling process {pid}: {errno}"
        ))),
    }
}
