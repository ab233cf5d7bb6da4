//! The host side: the listening sockets, the line that host programs begin with, connecting to the programs that
//! wait for the guest, and whole messages.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::queue::SocketType;

/// Longest first line: `CONNECT 4294967295\n`.
const MAX_LINE: usize = 19;

/// What has arrived of a host program's first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstLine {
    /// A guest port was asked for; the line is this many bytes long.
    Connect { port: u32, len: usize },
    /// Not complete yet.
    Partial,
    /// Something else.
    Bad,
}

/// Reads a first line, of which `bytes` have arrived (perhaps with more behind it).
pub(super) fn parse_first_line(bytes: &[u8]) -> FirstLine {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|&byte| byte == b'\n') else {
        return if bytes.len() >= MAX_LINE { FirstLine::Bad } else { FirstLine::Partial };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let Some(digits) = line.strip_prefix(b"CONNECT ") else { return FirstLine::Bad };
    // No sign, no spaces: `parse` alone would take "+5".
    if !digits.iter().all(u8::is_ascii_digit) {
        return FirstLine::Bad;
    }
    match std::str::from_utf8(digits).map(str::parse) {
        Ok(Ok(port)) => FirstLine::Connect { port, len: end + 1 },
        _ => FirstLine::Bad,
    }
}

/// Looks at the first line of a host program and takes exactly that line out of the stream: data may
/// follow it at once. `Ok(None)`: not complete yet.
///
/// # Errors
/// The program is gone or does not speak the protocol.
pub(super) fn receive_first_line(stream: &UnixStream) -> io::Result<Option<u32>> {
    let mut bytes = [0; MAX_LINE];
    let seen = receive(stream.as_raw_fd(), &mut bytes, libc::MSG_PEEK)?;
    if seen == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    match parse_first_line(bytes.get(..seen).unwrap_or_default()) {
        FirstLine::Partial => Ok(None),
        FirstLine::Bad => Err(ErrorKind::InvalidData.into()),
        FirstLine::Connect { port, len } => {
            // These bytes were seen a moment ago, so they are all there.
            receive(stream.as_raw_fd(), bytes.get_mut(..len).unwrap_or_default(), 0)?;
            Ok(Some(port))
        }
    }
}

/// As [`receive_first_line`], of a program that sends messages: the line is a message of its own.
///
/// # Errors
/// As there; `WouldBlock` while nothing has come.
pub(super) fn receive_first_message(socket: &UnixStream) -> io::Result<u32> {
    let mut bytes = [0; MAX_LINE];
    let len = receive(socket.as_raw_fd(), &mut bytes, libc::MSG_TRUNC)?;
    match parse_first_line(bytes.get(..len).unwrap_or_default()) {
        FirstLine::Connect { port, len: line } if line == len => Ok(port),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// What a program that sends messages has for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A whole message.
    Message(Vec<u8>),
    /// One that is longer than it may be. It has not been taken.
    TooLong,
    /// There will be no more.
    End,
}

/// Takes the next message, if it has at most `most` bytes. Never waits.
///
/// # Errors
/// `WouldBlock`, or the program is gone without having read what was sent to it.
pub(super) fn receive_message(fd: RawFd, most: usize) -> io::Result<Received> {
    let len = receive(fd, &mut [], libc::MSG_PEEK | libc::MSG_TRUNC)?;
    if len > most {
        return Ok(Received::TooLong);
    }
    if len == 0 && has_ended(fd) {
        return Ok(Received::End);
    }
    let mut message = vec![0; len];
    receive(fd, &mut message, 0)?;
    Ok(Received::Message(message))
}

/// Whether the nothing that was read is the end, and not a message without bytes: those read the same. One right
/// before the end is taken for the end.
fn has_ended(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one pollfd, which is ours.
    let shut_down = unsafe { libc::poll(&mut poll, 1, 0) } == 1;
    let mut queued: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int, and it is ours.
    let known = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut queued) } == 0;
    shut_down && !(known && queued > 0)
}

fn receive(fd: RawFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the pointer and length describe `buffer`, which is ours to write.
    let received =
        unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags | libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Sends the two halves of a ring buffer; may send less. Never waits, never signals.
pub(super) fn send(fd: RawFd, halves: (&[u8], &[u8])) -> io::Result<usize> {
    let mut iovecs = [halves.0, halves.1]
        .map(|half| libc::iovec { iov_base: half.as_ptr().cast_mut().cast(), iov_len: half.len() });
    // SAFETY: msghdr is plain data for which all-zero (null pointers, no lengths) is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    // SAFETY: the iovecs describe the borrowed halves, which the kernel only reads.
    let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A unix socket that does not wait.
fn socket(socket_type: SocketType) -> io::Result<OwnedFd> {
    let kind = match socket_type {
        SocketType::Stream => libc::SOCK_STREAM,
        SocketType::Seqpacket => libc::SOCK_SEQPACKET,
    };
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Errors
/// The path is too long.
fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: sockaddr_un is plain data for which all-zero is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// Connects to whatever listens at `path`. std has no type for messages; its stream is as good an owner.
pub(super) fn connect(path: &Path, socket_type: SocketType) -> io::Result<UnixStream> {
    let (socket, address) = (socket(socket_type)?, address(path)?);
    // SAFETY: the pointer and length describe `address`.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(socket))
}

pub(super) fn listen(path: &Path, socket_type: SocketType) -> io::Result<UnixListener> {
    let (socket, address) = (socket(socket_type)?, address(path)?);
    // SAFETY: the pointer and length describe `address`.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers are passed. A small backlog would be overrun by a burst of host programs.
    if unsafe { libc::listen(socket.as_raw_fd(), libc::SOMAXCONN) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixListener::from(socket))
}

/// `path` with `suffix` at its end.
pub(super) fn beside(path: &Path, suffix: impl std::fmt::Display) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{suffix}"));
    PathBuf::from(name)
}

/// Connects to the program that waits for the guest at `<path>_<port>`. Does not wait: a full backlog is
/// `WouldBlock`. A program that waits with a socket of another type is an error.
pub(super) fn dial(path: &Path, port: u32, socket_type: SocketType) -> io::Result<UnixStream> {
    connect(&beside(path, port), socket_type)
}

/// A socket that host programs connect to. Removes its name when dropped.
#[derive(Debug)]
pub(super) struct HostListener {
    listener: UnixListener,
    path: PathBuf,
}

impl HostListener {
    /// Listens at `path`; a socket left over from a killed process is replaced.
    pub(super) fn bind(path: PathBuf, socket_type: SocketType) -> io::Result<Self> {
        let listener = match listen(&path, socket_type) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let socket = fs::symlink_metadata(&path)?.file_type().is_socket();
                let refused = connect(&path, socket_type).err().map(|error| error.kind());
                if !socket || refused != Some(ErrorKind::ConnectionRefused) {
                    return Err(error);
                }
                fs::remove_file(&path)?;
                listen(&path, socket_type)?
            }
            other => other?,
        };
        Ok(Self { listener, path })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// The next host program; `Ok(None)` if none waits.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use strato_virtio::mock::SeededRandom;

    use super::*;

    #[test]
    fn first_lines_are_read_exactly() {
        let good = |line: &[u8], port, len| {
            assert_eq!(parse_first_line(line), FirstLine::Connect { port, len });
        };
        good(b"CONNECT 0\n", 0, 10);
        good(b"CONNECT 4294967295\n", u32::MAX, 19);
        good(b"CONNECT 52\ndata\n", 52, 11);
        for line in ["", "C", "CONNECT ", "CONNECT 42949672", "CONNECT 4294967295"] {
            assert_eq!(parse_first_line(line.as_bytes()), FirstLine::Partial, "{line:?}");
        }
        let bad = [
            "\n",
            "CONNECT \n",
            "CONNECT +5\n",
            "CONNECT 5 \n",
            "connect 5\n",
            "CONNECT 4294967296\n",
            "CONNECT 00000000000000000005\n",
            "CONNECT -1\n",
            "CONNECT 5\r\n",
            "xxxxxxxxxxxxxxxxxxx",
        ];
        for line in bad {
            assert_eq!(parse_first_line(line.as_bytes()), FirstLine::Bad, "{line:?}");
        }
    }

    #[test]
    fn random_first_lines_never_panic_and_never_claim_too_much() {
        let mut random = SeededRandom::new(7);
        let alphabet = b"CONNECT 0123456789\n\xff";
        for _ in 0..if cfg!(miri) { 300 } else { 200_000 } {
            let len = random.below(24) as usize;
            let line: Vec<u8> = (0..len)
                .map(|at| match random.below(3) {
                    0 => alphabet[random.below(alphabet.len() as u64) as usize],
                    _ => *b"CONNECT 123456789012345\n".get(at).unwrap_or(&b'\n'),
                })
                .collect();
            if let FirstLine::Connect { len, .. } = parse_first_line(&line) {
                assert!(len <= line.len() && line[len - 1] == b'\n');
            }
        }
    }
}
