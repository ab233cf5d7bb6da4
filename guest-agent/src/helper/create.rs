//! A container's init by libcontainer, up to the point where it waits for its start.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use super::wire::Create;
use super::{Result, program, trace};
use crate::descriptor::{receive_with_fds, set_window_size};
use crate::oci::status::StatusWriter;
use crate::paths;
use crate::stdio::ChildEnds;

/// Makes init; returns its pid and, for a terminal, the terminal's master.
pub fn run(
    request: &Create,
    ends: ChildEnds,
    status: StatusWriter,
) -> Result<(i32, Option<OwnedFd>)> {
    trace::to_status(status.try_clone().map_err(|e| e.to_string())?);
    let executor = LastStep {
        status: std::rc::Rc::new(status),
        terminal_size: request.terminal.then_some(request.terminal_size),
    };
    let builder = ContainerBuilder::new(request.container_id.clone(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(paths::OCI_STATE)
        .map_err(|error| error.to_string())?
        .with_stdin(ends.stdin)
        .with_stdout(ends.stdout)
        .with_stderr(ends.stderr);
    let console_path = request.bundle.join("console.sock");
    let console = if request.terminal {
        let listener = UnixListener::bind(&console_path)
            .map_err(|error| format!("Making {}: {error}", console_path.display()))?;
        Some(listener)
    } else {
        None
    };
    let container = builder
        .with_console_socket(console.as_ref().map(|_| console_path.as_path()))
        .as_init(&request.bundle)
        .with_systemd(false)
        .build()
        .map_err(|error| chain(&error))?;
    let pid = container
        .pid()
        .ok_or("The OCI library reported no pid")?
        .as_raw();
    let terminal = console
        .map(|listener| receive_terminal(&listener))
        .transpose()
        .map_err(|error| format!("Receiving the terminal: {error}"))?;
    let _ = fs::remove_file(&console_path);
    Ok((pid, terminal))
}

/// The error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// The library has connected and sent the master before it returned: nothing here waits.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    listener.set_nonblocking(true)?;
    let (socket, _) = listener.accept()?;
    let mut name = [0; 256];
    let (_, mut fds) = receive_with_fds(socket.as_fd(), &mut name)?;
    fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// What libcontainer calls inside the container: check that the program is there, and in the end execute it.
#[derive(Clone)]
struct LastStep {
    status: std::rc::Rc<StatusWriter>,
    /// Some for a terminal.
    terminal_size: Option<(u16, u16)>,
}

impl LastStep {
    fn fail(&self, reason: String) -> String {
        self.status.explain(&reason);
        reason
    }
}

fn args_and_env(process: Option<&Process>) -> (Vec<String>, Vec<String>) {
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    (
        list(process.and_then(|process| process.args().as_ref())),
        list(process.and_then(|process| process.env().as_ref())),
    )
}

impl Executor for LastStep {
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        let (args, env) = args_and_env(spec.process().as_ref());
        let name = args.first().map_or("", String::as_str);
        program::find(name, &env)
            .map(|_| ())
            .map_err(|reason| ExecutorValidationError::ArgValidationError(self.fail(reason)))
    }

    /// The environment is given to execve; the helper's own is never changed.
    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        if let Some((rows, columns)) = self.terminal_size.filter(|size| *size != (0, 0)) {
            let _ = set_window_size(std::io::stdin().as_fd(), rows, columns);
        }
        let (args, env) = args_and_env(spec.process().as_ref());
        let Err(reason) = program::execute(&args, &env);
        Err(ExecutorError::Other(self.fail(reason)))
    }
}
