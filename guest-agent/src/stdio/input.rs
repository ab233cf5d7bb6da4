//! The host's stdin on its way to a process: stream connection → pipe or terminal.
//!
//! The stream ends only by CloseStdin's byte count. A connection that goes away leaves the process waiting, and
//! the host may connect again (a client that detaches and re-attaches). For a terminal the end changes nothing
//! inside the container, as with other runtimes: nobody hangs up, no end-of-file character is made up; the client
//! sends its own ^D.

use std::io;
use std::os::fd::AsRawFd;

use tokio::sync::watch;

use super::CHUNK;
use super::table::Connections;
use crate::descriptor::Descriptor;

pub struct Input {
    /// None once the process closed its end or the count was reached; what still comes is thrown away.
    sink: Option<Descriptor>,
    limit: watch::Receiver<Option<u64>>,
    moved: u64,
}

impl Input {
    pub fn new(sink: Option<Descriptor>, limit: watch::Receiver<Option<u64>>) -> Self {
        Self {
            sink,
            limit,
            moved: 0,
        }
    }

    /// Runs until the process is forgotten.
    pub async fn run(mut self, mut connections: Connections) {
        let mut connection: Option<Descriptor> = None;
        loop {
            let limit = *self.limit.borrow_and_update();
            if limit.is_some_and(|limit| self.moved >= limit) {
                self.sink = None;
            }
            tokio::select! {
                next = connections.recv() => match next {
                    Some(next) => connection = Some(next),
                    None => return,
                },
                changed = self.limit.changed() => if changed.is_err() {
                    return;
                },
                bytes = read_some(connection.as_ref(), room(limit, self.moved)) => match bytes {
                    Ok(bytes) => self.deliver(&bytes).await,
                    Err(_) => connection = None,
                },
            }
        }
    }

    async fn deliver(&mut self, bytes: &[u8]) {
        if let Some(sink) = &self.sink
            && sink.write_all(bytes).await.is_err()
        {
            self.sink = None;
        }
        self.moved += bytes.len() as u64;
    }
}

/// How much may be read before the limit has to be looked at again.
fn room(limit: Option<u64>, moved: u64) -> usize {
    match limit.map(|limit| limit.saturating_sub(moved)) {
        // Beyond the end: the host should send nothing; read it all the same to notice when it closes.
        None | Some(0) => CHUNK,
        Some(left) => usize::try_from(left).unwrap_or(CHUNK).min(CHUNK),
    }
}

/// Reads once; never resolves without a connection. An end is an error here.
async fn read_some(connection: Option<&Descriptor>, most: usize) -> io::Result<Vec<u8>> {
    let Some(connection) = connection else {
        return std::future::pending().await;
    };
    let mut buffer = Vec::new();
    let count = connection
        .when_readable(|fd| {
            // The buffer is there only while there is something to read.
            buffer.resize(most, 0);
            let result = nix::unistd::read(fd.as_raw_fd(), &mut buffer);
            if result.is_err() {
                buffer = Vec::new();
            }
            Ok(result?)
        })
        .await?;
    buffer.truncate(count);
    if buffer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_stops_exactly_at_the_limit() {
        assert_eq!(room(None, 7), CHUNK);
        assert_eq!(room(Some(10), 7), 3);
        assert_eq!(room(Some(10_000_000), 7), CHUNK);
        assert_eq!(room(Some(7), 7), CHUNK);
    }
}
