//! The host's side of a port.
#![expect(unsafe_code, reason = "system calls")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Bytes kept for a reader that is not there; the oldest give way.
const BUFFER: usize = 64 * 1024;

/// What a port is, and where it leads.
#[derive(Debug)]
pub struct PortConfig {
    /// Name that programs of the guest find it by (with several ports only).
    pub name: String,
    /// Whether the guest may use it as a terminal. The first port always is one.
    pub console: bool,
    /// Where the host's bytes come from: a pipe, socket or terminal. It becomes non-blocking.
    pub input: Option<OwnedFd>,
    /// Where the guest's bytes go. It becomes non-blocking.
    pub output: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct HostSide {
    input: Option<File>,
    output: Option<File>,
    /// The input may have something: its edge has come and no read has found it empty since.
    readable: bool,
    waiting: VecDeque<u8>,
}

fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    // SAFETY: no pointers are passed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(File::from(fd))
}

impl HostSide {
    pub(super) fn new(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            input: input.map(nonblocking).transpose()?,
            output: output.map(nonblocking).transpose()?,
            readable: true,
            waiting: VecDeque::new(),
        })
    }

    pub(super) fn input_fd(&self) -> Option<RawFd> {
        self.input.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(super) fn output_fd(&self) -> Option<RawFd> {
        self.output.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether anybody on the host has it: what the guest sees as an open port.
    pub(super) fn connected(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }

    pub(super) fn input_ready(&mut self) {
        self.readable = true;
    }

    pub(super) fn may_have_input(&self) -> bool {
        self.readable && self.input.is_some()
    }

    /// Takes bytes that the host wrote; 0 if there are none now. A host that has gone has none any more.
    pub(super) fn receive(&mut self, data: &mut [u8]) -> usize {
        let Some(input) = self.input.as_mut() else { return 0 };
        loop {
            match input.read(data) {
                Ok(0) => self.input = None,
                Ok(count) => return count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => self.input = None,
            }
            return 0;
        }
    }

    /// Takes bytes of the guest; returns how many were dropped for it, of these or older ones.
    pub(super) fn send(&mut self, data: &[u8]) -> usize {
        if self.output.is_none() {
            return data.len();
        }
        let sent = if self.waiting.is_empty() { self.write(data) } else { 0 };
        let rest = data.get(sent..).unwrap_or_default();
        if self.output.is_none() {
            return rest.len();
        }
        let kept = rest.get(rest.len().saturating_sub(BUFFER)..).unwrap_or_default();
        let excess = (self.waiting.len() + kept.len()).saturating_sub(BUFFER);
        self.waiting.drain(..excess);
        self.waiting.extend(kept);
        excess + rest.len() - kept.len()
    }

    /// The host may take more now. Returns how many bytes were dropped because it has gone.
    pub(super) fn flush(&mut self) -> usize {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            let first = first.to_vec();
            let sent = self.write(&first);
            self.waiting.drain(..sent);
            if self.output.is_none() {
                let lost = self.waiting.len();
                self.waiting = VecDeque::new();
                return lost;
            }
            if sent < first.len() {
                return 0;
            }
        }
        self.waiting.shrink_to(0);
        0
    }

    /// Writes what can be written without waiting. An output that failed is given up.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut sent = 0;
        while let (Some(output), Some(rest)) = (self.output.as_mut(), data.get(sent..)) {
            if rest.is_empty() {
                break;
            }
            match output.write(rest) {
                Ok(0) => self.output = None,
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.output = None,
            }
        }
        sent
    }
}
