//! One stream: a source, a destination, and at most one buffer between them.

use strato_plumbing::Result;

use crate::pump::StreamConfig;
use crate::pump::descriptor::{End, Transfer};
use crate::pump::events::EventKind;

/// Bytes after which a busy stream lets the others have a turn.
const TURN_BYTES: u64 = 512 * 1024;

/// Chunks at least this large are moved by splice; smaller ones would fill a fifo's 16 slots with crumbs.
const SPLICE_FROM_BYTES: usize = 16 * 1024;

/// At most so much in one splice.
const SPLICE_BYTES: u64 = 256 * 1024;

/// What a stream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Moving bytes.
    Running = 0,
    /// Reading to nowhere, after an error of the destination.
    Draining = 1,
    /// Ended; waits to be removed.
    Finished = 2,
}

/// How far a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Written, or thrown away while draining.
    pub bytes_moved: u64,
    /// Read, and so perhaps still in the buffer.
    pub bytes_read: u64,
    /// What it is doing.
    pub state: State,
}

/// Why a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Waits for an end to become ready.
    Waiting,
    /// Has had its share, wants more.
    More,
    /// The destination failed and the stream drains on: report it and go on.
    DstFailed(i32),
    /// It is over: report it and let go of the descriptors.
    Finished(EventKind, i32),
}

/// One stream. The engine owns it and tells it which ends are ready.
#[derive(Debug)]
pub struct Stream {
    /// Comes back in events.
    pub tag: u64,
    /// Waits in the engine's run queue.
    pub queued: bool,
    /// Where bytes come from; None once finished.
    pub src: Option<End>,
    /// Where bytes go; None once finished or failed.
    pub dst: Option<End>,
    /// Read but not written: allocated only when the destination is full, freed when it has taken all.
    pending: Vec<u8>,
    written: usize,
    limit: Option<u64>,
    read: u64,
    moved: u64,
    keep_on_dst_error: bool,
    close_dst: bool,
    state: State,
    /// The last chunk was large.
    bulk: bool,
    splice: bool,
}

impl Stream {
    /// Duplicates the descriptors of `config`.
    pub fn new(config: &StreamConfig) -> Result<Self> {
        let src = End::duplicate(config.src_fd, "source")?;
        let dst = End::duplicate(config.dst_fd, "destination")?;
        // Between a pipe and a socket splice saves a quarter of the CPU time; between two pipes, nothing.
        let splice = (src.is_pipe() && dst.is_splice_socket()) || (src.is_splice_socket() && dst.is_pipe());
        Ok(Self {
            tag: config.tag,
            queued: false,
            src: Some(src),
            dst: Some(dst),
            pending: Vec::new(),
            written: 0,
            limit: config.limit,
            read: 0,
            moved: 0,
            keep_on_dst_error: config.keep_on_dst_error,
            close_dst: config.close_dst,
            state: State::Running,
            bulk: false,
            splice,
        })
    }

    /// How far it has come.
    pub fn stats(&self) -> Stats {
        Stats { bytes_moved: self.moved, bytes_read: self.read, state: self.state }
    }

    /// Finish after `total` bytes in all. What was read beyond is dropped.
    pub fn set_limit(&mut self, total: u64) {
        self.limit = Some(total);
        if self.read > total {
            let keep = usize::try_from(total.saturating_sub(self.moved)).unwrap_or(usize::MAX);
            self.pending.truncate(self.written.saturating_add(keep));
        }
    }

    /// Moves bytes until an end is not ready, the share is used up or the stream is over.
    pub fn run(&mut self, scratch: &mut [u8]) -> Turn {
        if self.state == State::Finished {
            return Turn::Waiting;
        }
        let share_end = self.moved.saturating_add(TURN_BYTES);
        loop {
            let step = if self.written < self.pending.len() {
                self.write_pending()
            } else if self.limit.is_some_and(|limit| self.moved >= limit) {
                Some(Turn::Finished(EventKind::Done, 0))
            } else if self.moved >= share_end {
                Some(Turn::More)
            } else {
                self.read_more(scratch)
            };
            match step {
                None => {}
                Some(Turn::Finished(kind, errno)) => {
                    self.state = State::Finished;
                    self.free_pending();
                    return Turn::Finished(kind, errno);
                }
                Some(turn) => return turn,
            }
        }
    }

    /// The ends to let go of after [`Turn::Finished`]; the destination stays when the caller wants it so.
    pub fn release(&mut self) -> (Option<End>, Option<End>) {
        (self.src.take(), if self.close_dst { self.dst.take() } else { None })
    }

    /// None: go on.
    fn write_pending(&mut self) -> Option<Turn> {
        let Some(dst) = &mut self.dst else {
            self.discard_pending();
            return None;
        };
        if !dst.ready {
            return Some(Turn::Waiting);
        }
        let rest = self.pending.get(self.written..).unwrap_or_default();
        match dst.write(rest) {
            Transfer::Bytes(count) => {
                self.written += count;
                self.moved += count as u64;
                if self.written >= self.pending.len() {
                    self.free_pending();
                }
                None
            }
            Transfer::NotNow => {
                dst.ready = false;
                Some(Turn::Waiting)
            }
            Transfer::Failed(errno) => Some(self.dst_failed(errno)),
        }
    }

    fn read_more(&mut self, scratch: &mut [u8]) -> Option<Turn> {
        let Some(src) = &mut self.src else { return Some(Turn::Waiting) };
        if !src.ready {
            return Some(Turn::Waiting);
        }
        let left = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.moved));
        if self.bulk && self.splice && self.splice_once(left) {
            // Moved something, or the destination is full.
            return if self.dst.as_ref().is_some_and(|dst| dst.ready) { None } else { Some(Turn::Waiting) };
        }
        let src = self.src.as_mut()?;
        let wanted = scratch.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = scratch.get_mut(..wanted)?;
        match src.read(buffer) {
            Transfer::Bytes(0) => Some(Turn::Finished(EventKind::SrcEof, 0)),
            Transfer::Bytes(count) => {
                self.read += count as u64;
                self.bulk = count >= SPLICE_FROM_BYTES;
                self.deliver(buffer.get(..count).unwrap_or_default())
            }
            Transfer::NotNow => {
                src.ready = false;
                Some(Turn::Waiting)
            }
            Transfer::Failed(errno) if src.is_terminal_end(errno) => {
                Some(Turn::Finished(EventKind::SrcEof, 0))
            }
            Transfer::Failed(errno) => Some(Turn::Finished(EventKind::SrcError, errno)),
        }
    }

    /// Moves a large chunk inside the kernel, or finds the destination full. False: neither; take the ordinary
    /// way, which also finds out why.
    fn splice_once(&mut self, left: u64) -> bool {
        let (Some(src), Some(dst)) = (&mut self.src, &mut self.dst) else { return false };
        if !dst.ready {
            return false;
        }
        let length = usize::try_from(left.min(SPLICE_BYTES)).unwrap_or(usize::MAX);
        match src.splice(dst, length) {
            // Either end may be to blame. With a full destination it is better to wait than to copy a buffer.
            Transfer::NotNow if !dst.is_writable() => {
                dst.ready = false;
                true
            }
            Transfer::Bytes(0) | Transfer::NotNow => {
                self.bulk = false;
                false
            }
            Transfer::Bytes(count) => {
                self.read += count as u64;
                self.moved += count as u64;
                self.bulk = count >= SPLICE_FROM_BYTES;
                true
            }
            Transfer::Failed(libc::EPIPE | libc::ECONNRESET) => {
                // The ordinary write meets the same error and reports it.
                self.bulk = false;
                false
            }
            Transfer::Failed(_) => {
                self.splice = false;
                false
            }
        }
    }

    /// Writes what has just been read; keeps what the destination does not take.
    fn deliver(&mut self, mut bytes: &[u8]) -> Option<Turn> {
        while !bytes.is_empty() {
            let Some(dst) = &mut self.dst else {
                self.moved += bytes.len() as u64;
                return None;
            };
            let outcome = if dst.ready { dst.write(bytes) } else { Transfer::NotNow };
            match outcome {
                Transfer::Bytes(count) => {
                    self.moved += count as u64;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Transfer::NotNow => {
                    dst.ready = false;
                    self.pending = bytes.to_vec();
                    self.written = 0;
                    return Some(Turn::Waiting);
                }
                Transfer::Failed(errno) => {
                    let lost = bytes.len() as u64;
                    let turn = self.dst_failed(errno);
                    if matches!(turn, Turn::DstFailed(_)) {
                        self.moved += lost;
                    }
                    return Some(turn);
                }
            }
        }
        None
    }

    fn dst_failed(&mut self, errno: i32) -> Turn {
        if !self.keep_on_dst_error {
            return Turn::Finished(EventKind::DstError, errno);
        }
        self.state = State::Draining;
        self.discard_pending();
        Turn::DstFailed(errno)
    }

    fn discard_pending(&mut self) {
        self.moved += self.pending.len().saturating_sub(self.written) as u64;
        self.free_pending();
    }

    fn free_pending(&mut self) {
        self.pending = Vec::new();
        self.written = 0;
    }
}
