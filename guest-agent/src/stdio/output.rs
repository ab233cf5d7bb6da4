//! A process's output on its way to the host: pipe or terminal → stream connection.
//!
//! Nothing is read before the host has connected the stream. `settle` may be called at any time, from the task
//! that reaps the process: it tells how many bytes the stream will have carried when all that was written until
//! then is moved, without waiting for the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::CHUNK;
use super::table::Connections;
use crate::descriptor::{self, Descriptor};
use crate::events::EventLog;
use crate::proto::agent::{StreamEof, event};
use crate::sync::lock;

/// A terminal holds back at most its input queue (4 KiB) and its flip buffers (64 KiB at the very most,
/// tty_buffer_set_limit); more than this in a row is a process that writes on.
const MAX_TERMINAL_DRAIN: usize = 128 * 1024;

/// Where output comes from.
pub enum Source {
    Pipe(Descriptor),
    Terminal(Descriptor),
}

impl Source {
    fn descriptor(&self) -> &Descriptor {
        match self {
            Self::Pipe(descriptor) | Self::Terminal(descriptor) => descriptor,
        }
    }

    /// A terminal whose last user is gone reports EIO: that is its end.
    fn is_end(&self, result: &io::Result<usize>) -> bool {
        match result {
            Ok(count) => *count == 0,
            Err(error) => {
                matches!(self, Self::Terminal(_)) && error.raw_os_error() == Some(libc::EIO)
            }
        }
    }
}

pub struct Output {
    name: String,
    state: Mutex<State>,
    /// Bytes were drained that the pump does not know of.
    drained: Notify,
}

struct State {
    /// None once the stream is over: ended, broken, or closed by the host.
    source: Option<Arc<Source>>,
    /// Bytes taken from the source so far, those in `leftover` included.
    read: u64,
    /// Drained from the terminal when its process died, to be sent before anything else.
    leftover: Vec<u8>,
}

enum Chunk {
    Data(Vec<u8>),
    End,
}

impl Output {
    pub const STDOUT: usize = 1;
    pub const STDERR: usize = 2;

    pub fn new(name: String, source: Source) -> Self {
        Self {
            name,
            state: Mutex::new(State {
                source: Some(Arc::new(source)),
                read: 0,
                leftover: Vec::new(),
            }),
            drained: Notify::new(),
        }
    }

    /// Bytes from the stream's start to what has been written until now.
    pub fn settle(&self) -> u64 {
        let mut state = lock(&self.state);
        let Some(source) = state.source.clone() else {
            return state.read;
        };
        match source.as_ref() {
            Source::Pipe(pipe) => state.read + descriptor::bytes_waiting(pipe.as_fd()),
            Source::Terminal(terminal) => {
                // The kernel moves a terminal's data in the background, only reading brings it all out.
                let mut buffer = [0; 4096];
                while state.leftover.len() < MAX_TERMINAL_DRAIN {
                    match terminal.try_read(&mut buffer) {
                        Ok(Some(count)) if count > 0 => {
                            state.leftover.extend_from_slice(&buffer[..count]);
                            state.read += count as u64;
                        }
                        _ => break,
                    }
                }
                self.drained.notify_one();
                state.read
            }
        }
    }

    /// The next bytes to send. Cancelling loses nothing: bytes are counted when they are returned.
    async fn next_chunk(&self) -> io::Result<Chunk> {
        loop {
            let source = {
                let mut state = lock(&self.state);
                if !state.leftover.is_empty() {
                    return Ok(Chunk::Data(std::mem::take(&mut state.leftover)));
                }
                match state.source.clone() {
                    Some(source) => source,
                    None => return Ok(Chunk::End),
                }
            };
            tokio::select! {
                biased;
                () = self.drained.notified() => {}
                chunk = self.read_chunk(&source) => return chunk,
            }
        }
    }

    async fn read_chunk(&self, source: &Source) -> io::Result<Chunk> {
        let mut buffer = Vec::new();
        let result = source
            .descriptor()
            .when_readable(|fd| {
                // The buffer is there only while there is something to read.
                buffer.resize(CHUNK, 0);
                let result =
                    nix::unistd::read(fd.as_raw_fd(), &mut buffer).map_err(io::Error::from);
                if let Ok(count) = result {
                    lock(&self.state).read += count as u64;
                } else {
                    buffer = Vec::new();
                }
                result
            })
            .await;
        if source.is_end(&result) {
            return Ok(Chunk::End);
        }
        buffer.truncate(result?);
        Ok(Chunk::Data(buffer))
    }

    /// Closes the process's way out; the count stays what it was.
    fn close(&self) -> u64 {
        let mut state = lock(&self.state);
        state.source = None;
        state.read
    }
}

/// Pumps until the end of data or until the host goes, then keeps the connection until the host closes it.
pub async fn run(output: Arc<Output>, mut connections: Connections, events: Arc<EventLog>) {
    let Some(connection) = connections.recv().await else {
        return;
    };
    // Nobody may connect it again.
    connections.close();
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = output.next_chunk() => chunk,
            () = closed_by_host(&connection) => {
                // The process meets SIGPIPE or, on a terminal, goes on unheard.
                output.close();
                return;
            }
        };
        match chunk {
            Ok(Chunk::Data(bytes)) => {
                if connection.write_all(&bytes).await.is_err() {
                    output.close();
                    return;
                }
            }
            Ok(Chunk::End) => break,
            Err(error) => {
                crate::warning!("Reading {} failed: {error}", output.name);
                break;
            }
        }
    }
    let total = output.close();
    events.push(event::Kind::StreamEof(StreamEof {
        stream: output.name.clone(),
        total,
        ..Default::default()
    }));
    closed_by_host(&connection).await;
}

/// Resolves when the host has closed the connection. The host sends nothing on an output stream.
async fn closed_by_host(connection: &Descriptor) {
    let mut byte = [0; 1];
    while let Ok(1..) = connection.read(&mut byte).await {}
}
