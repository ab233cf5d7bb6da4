//! The host side: the listening socket, the line that host programs begin with, and connecting to the
//! programs that wait for the guest.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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

/// The socket that host programs connect to. Removes its name when dropped.
#[derive(Debug)]
pub(super) struct HostListener {
    listener: UnixListener,
    path: PathBuf,
}

impl HostListener {
    /// Listens at `path`; a socket left over from a killed process is replaced.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let socket = fs::symlink_metadata(path)?.file_type().is_socket();
                let refused = UnixStream::connect(path).err().map(|error| error.kind());
                if !socket || refused != Some(ErrorKind::ConnectionRefused) {
                    return Err(error);
                }
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        // std listens with a backlog of 128, which a burst of host programs overruns.
        // SAFETY: a listening socket may be told a new backlog at any time.
        if unsafe { libc::listen(listener.as_raw_fd(), libc::SOMAXCONN) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { listener, path: path.to_owned() })
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

    /// Connects to the program that waits for the guest at `<path>_<port>`. Does not wait: a full backlog is
    /// `WouldBlock`.
    pub(super) fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = OsString::from(&self.path);
        name.push(format!("_{port}"));
        // SAFETY: sockaddr_un is plain data for which all-zero is a valid value.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = name.as_bytes();
        if bytes.len() >= address.sun_path.len() {
            return Err(ErrorKind::InvalidInput.into());
        }
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        // SAFETY: no pointers are passed.
        let fd = unsafe {
            libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just made this descriptor, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        // SAFETY: the pointer and length describe `address`.
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(UnixStream::from(socket))
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
        for _ in 0..200_000 {
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
