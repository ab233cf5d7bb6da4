//! A process's standard streams: which ones the host wants, the pipes or terminal behind them, and the pumps
//! between those and the host's stream connections.
//!
//! Lifetimes: made when a process is registered, pumps run until the end of data, and everything is closed when
//! the process is forgotten ([`Streams`] is dropped). Memory per stream is bounded by one buffer; what does not
//! fit stays in the pipe, which is how a slow host slows the process.

pub mod input;
pub mod listener;
pub mod output;
pub mod table;

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, fchown, pipe2};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::input::Input;
use self::output::{Output, Source};
use self::table::{Connections, StreamTable};
use crate::descriptor::{self, Descriptor};
use crate::errors::{Context, Result};
use crate::events::EventLog;
use crate::proto::agent::Stdio as StdioRequest;
use crate::reaper::ProcessKey;

/// Pump buffer, bytes: a pipe's default capacity.
pub const CHUNK: usize = 65536;

/// What the host asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub terminal: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Initial terminal size, rows and columns; 0 is unset.
    pub size: (u16, u16),
}

impl From<&StdioRequest> for Wanted {
    fn from(request: &StdioRequest) -> Self {
        let size = |value: u32| u16::try_from(value).unwrap_or(0);
        Self {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            // A terminal has one output.
            stderr: request.stderr && !request.terminal,
            size: (size(request.rows), size(request.columns)),
        }
    }
}

/// The process's ends of its streams: given to the helper, then closed.
pub struct ChildEnds {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// The agent's ends. Dropping it ends the pumps and closes the host's connections.
pub struct Streams {
    wanted: Wanted,
    stdout: Option<Arc<Output>>,
    stderr: Option<Arc<Output>>,
    stdin_limit: watch::Sender<Option<u64>>,
    /// Connections of a terminal's streams, until the terminal exists.
    waiting: Option<(Option<Connections>, Option<Connections>)>,
    master: Option<OwnedFd>,
    pumps: Vec<JoinHandle<()>>,
    events: Arc<EventLog>,
    names: StreamNames,
    table: Arc<StreamTable>,
}

struct StreamNames {
    stdin: String,
    stdout: String,
    stderr: String,
}

/// A stream's id: `<container_id>/<exec_id>/<stdin|stdout|stderr>`.
pub fn stream_id(key: &ProcessKey, stream: &str) -> String {
    format!("{}/{}/{stream}", key.container_id, key.exec_id)
}

impl Streams {
    /// Makes pipes (none for a terminal), registers the wanted streams and starts their pumps. Pipes belong to
    /// `owner`, so that a process of another user can open /dev/stdout again.
    pub fn new(
        key: &ProcessKey,
        wanted: Wanted,
        owner: (u32, u32),
        table: &Arc<StreamTable>,
        events: &Arc<EventLog>,
    ) -> Result<(Self, ChildEnds)> {
        let names = StreamNames {
            stdin: stream_id(key, "stdin"),
            stdout: stream_id(key, "stdout"),
            stderr: stream_id(key, "stderr"),
        };
        let mut streams = Self {
            wanted,
            stdout: None,
            stderr: None,
            stdin_limit: watch::channel(None).0,
            waiting: None,
            master: None,
            pumps: Vec::new(),
            events: Arc::clone(events),
            names,
            table: Arc::clone(table),
        };
        let register = |wanted: bool, name: &str| wanted.then(|| table.register(name));
        let stdin = register(wanted.stdin, &streams.names.stdin);
        let stdout = register(wanted.stdout, &streams.names.stdout);
        let stderr = register(wanted.stderr, &streams.names.stderr);
        if wanted.terminal {
            streams.waiting = Some((stdin, stdout));
            let ends = ChildEnds {
                stdin: open_null()?,
                stdout: open_null()?,
                stderr: open_null()?,
            };
            return Ok((streams, ends));
        }
        let ends = ChildEnds {
            stdin: streams.start_input(stdin, owner)?,
            stdout: streams.start_output(stdout, Output::STDOUT, owner)?,
            stderr: streams.start_output(stderr, Output::STDERR, owner)?,
        };
        Ok((streams, ends))
    }

    fn start_input(
        &mut self,
        connections: Option<Connections>,
        owner: (u32, u32),
    ) -> Result<OwnedFd> {
        let Some(connections) = connections else {
            return open_null();
        };
        let (child, ours) = pipe2(OFlag::O_CLOEXEC).context("Making a pipe")?;
        give_to(&child, owner);
        let sink = Descriptor::new(ours).context("Registering a pipe")?;
        let input = Input::new(Some(sink), self.stdin_limit.subscribe());
        self.pumps.push(tokio::spawn(input.run(connections)));
        Ok(child)
    }

    fn start_output(
        &mut self,
        connections: Option<Connections>,
        which: usize,
        owner: (u32, u32),
    ) -> Result<OwnedFd> {
        let Some(connections) = connections else {
            return open_null();
        };
        let (ours, child) = pipe2(OFlag::O_CLOEXEC).context("Making a pipe")?;
        give_to(&child, owner);
        let source = Source::Pipe(Descriptor::new(ours).context("Registering a pipe")?);
        self.pump_output(connections, which, source);
        Ok(child)
    }

    fn pump_output(&mut self, connections: Connections, which: usize, source: Source) {
        let (name, slot) = if which == Output::STDOUT {
            (&self.names.stdout, &mut self.stdout)
        } else {
            (&self.names.stderr, &mut self.stderr)
        };
        let output = Arc::new(Output::new(name.clone(), source));
        *slot = Some(Arc::clone(&output));
        let events = Arc::clone(&self.events);
        self.pumps
            .push(tokio::spawn(output::run(output, connections, events)));
    }

    /// Takes the terminal that the helper made and starts its pumps.
    pub fn attach_terminal(&mut self, master: OwnedFd) -> Result<()> {
        let (stdin, stdout) = self.waiting.take().unwrap_or_default();
        if let Some(connections) = stdout {
            let copy = master.try_clone().context("Copying the terminal")?;
            let source = Descriptor::new(copy).context("Registering the terminal")?;
            self.pump_output(connections, Output::STDOUT, Source::Terminal(source));
        }
        if let Some(connections) = stdin {
            let copy = master.try_clone().context("Copying the terminal")?;
            let sink = Descriptor::new(copy).context("Registering the terminal")?;
            let input = Input::new(Some(sink), self.stdin_limit.subscribe());
            self.pumps.push(tokio::spawn(input.run(connections)));
        }
        // Also where nobody reads or writes: the terminal lives as long as its process.
        self.master = Some(master);
        Ok(())
    }

    pub fn initial_size(&self) -> (u16, u16) {
        self.wanted.size
    }

    /// What stdout and stderr will have carried when all that was written until now is moved.
    pub fn settle(&self) -> (u64, u64) {
        let settle = |output: &Option<Arc<Output>>| output.as_ref().map_or(0, |o| o.settle());
        (settle(&self.stdout), settle(&self.stderr))
    }

    /// stdin ends after exactly that many bytes.
    pub fn close_stdin(&self, after_bytes: u64) {
        self.stdin_limit.send_replace(Some(after_bytes));
    }

    /// Sets the terminal's size; errors when there is none.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let master = self.master.as_ref().ok_or_else(|| {
            crate::errors::AgentError::precondition("The process has no terminal (yet)")
        })?;
        descriptor::set_window_size(master.as_fd(), rows, columns)
            .with_context(|| format!("Setting the terminal size to {rows}x{columns}"))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for pump in &self.pumps {
            pump.abort();
        }
        for name in [&self.names.stdin, &self.names.stdout, &self.names.stderr] {
            self.table.forget(name);
        }
    }
}

fn open_null() -> Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .context("Opening /dev/null")
}

/// Best effort: a refusal only matters to a process that opens /dev/stdout by name.
fn give_to(fd: &OwnedFd, (uid, gid): (u32, u32)) {
    use std::os::fd::AsRawFd;
    let _ = fchown(
        fd.as_raw_fd(),
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    );
}
