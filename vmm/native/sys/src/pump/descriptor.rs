//! One end of a stream: a duplicated descriptor of any kind, read or written without ever blocking.
//!
//! O_NONBLOCK is a property of the open file, which the caller's descriptor shares with ours. It is therefore
//! the last means: sockets have MSG_DONTWAIT, pipes RWF_NOWAIT where the kernel offers it, and only the rest
//! (ttys, old kernels) get O_NONBLOCK, which is taken back when the stream lets go of the descriptor.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use strato_plumbing::failure::last_errno;
use strato_plumbing::{Result, check};

/// How a read or write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes; 0 from a read is the end.
    Bytes(usize),
    /// Nothing now; epoll will tell.
    NotNow,
    /// A positive errno.
    Failed(c_int),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// recv and send with MSG_DONTWAIT.
    Socket,
    /// preadv2 and pwritev2 with RWF_NOWAIT.
    NoWait,
    /// read and write of an open file that has O_NONBLOCK, or (regular files, /dev/null) never waits.
    Plain,
}

/// One end of a stream.
#[derive(Debug)]
pub struct End {
    fd: OwnedFd,
    method: Method,
    mode: libc::mode_t,
    /// O_NONBLOCK was set by us.
    restore: bool,
    /// O_NONBLOCK is set, by whomever.
    nonblocking: bool,
    /// Is in the epoll set; otherwise it is always ready.
    pub polled: bool,
    /// May be tried: nothing has said "not now" since the last event.
    pub ready: bool,
}

impl End {
    /// Duplicates `fd`; `role` is for the message.
    pub fn duplicate(fd: RawFd, role: &str) -> Result<Self> {
        // SAFETY: F_DUPFD_CLOEXEC takes integers. 3: never take the place of a closed standard stream.
        let raw = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        check(raw, || format!("Cannot duplicate {role} descriptor {fd}"))?;
        // SAFETY: fcntl returned this descriptor just now; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut facts = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: `facts` is writable and as large as the call expects.
        let outcome = unsafe { libc::fstat(fd.as_raw_fd(), facts.as_mut_ptr()) };
        check(outcome, || format!("Cannot stat {role} descriptor"))?;
        // SAFETY: fstat succeeded and has filled the structure.
        let mode = unsafe { facts.assume_init() }.st_mode & libc::S_IFMT;
        // SAFETY: F_GETFL takes no argument.
        let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }, || {
            "Cannot read descriptor flags".into()
        })?;
        let nonblocking = flags & libc::O_NONBLOCK != 0;
        let method = match mode {
            libc::S_IFSOCK => Method::Socket,
            libc::S_IFREG | libc::S_IFBLK => Method::Plain,
            _ if nonblocking => Method::Plain,
            _ => Method::NoWait,
        };
        Ok(Self { fd, method, mode, restore: false, nonblocking, polled: false, ready: false })
    }

    /// Must not be registered with epoll: epoll would refuse, and it never makes anyone wait.
    pub fn always_ready(&mut self) {
        self.polled = false;
        self.ready = true;
        if self.method == Method::NoWait {
            self.method = Method::Plain;
        }
    }

    /// A pipe or fifo.
    pub fn is_pipe(&self) -> bool {
        self.mode == libc::S_IFIFO
    }

    /// EIO from a character device that can be polled is a terminal whose other side has gone.
    pub fn is_terminal_end(&self, errno: c_int) -> bool {
        errno == libc::EIO && self.mode == libc::S_IFCHR
    }

    /// A socket that splice(2) can use without ever waiting: kernels differ in whether SPLICE_F_NONBLOCK
    /// reaches it, so it must have O_NONBLOCK itself.
    pub fn is_splice_socket(&self) -> bool {
        self.mode == libc::S_IFSOCK && self.nonblocking
    }

    /// Asks the kernel, for when splice has left open which end is not ready. Errors count as writable: the
    /// write will meet them.
    pub fn is_writable(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: `poll` is one live pollfd, as the count says.
        unsafe { libc::poll(&raw mut poll, 1, 0) != 0 }
    }

    /// Reads what is there, at most `buffer`.
    pub fn read(&mut self, buffer: &mut [u8]) -> Transfer {
        let (fd, length) = (self.fd.as_raw_fd(), buffer.len());
        self.repeat(|method| match method {
            Method::Socket => {
                // SAFETY: `buffer` is writable for `length` bytes.
                unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), length, libc::MSG_DONTWAIT) }
            }
            Method::NoWait => {
                let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
                // SAFETY: one live iovec that describes `buffer`; offset -1 is the stream position.
                unsafe { libc::preadv2(fd, &raw const vector, 1, -1, libc::RWF_NOWAIT) }
            }
            Method::Plain => {
                // SAFETY: `buffer` is writable for `length` bytes.
                unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), length) }
            }
        })
    }

    /// Writes what fits.
    pub fn write(&mut self, bytes: &[u8]) -> Transfer {
        let (fd, length) = (self.fd.as_raw_fd(), bytes.len());
        self.repeat(|method| match method {
            Method::Socket => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: `bytes` is readable for `length` bytes.
                unsafe { libc::send(fd, bytes.as_ptr().cast(), length, flags) }
            }
            Method::NoWait => {
                let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: length };
                // SAFETY: one live iovec that describes `bytes`, which pwritev2 only reads; -1: stream position.
                unsafe { libc::pwritev2(fd, &raw const vector, 1, -1, libc::RWF_NOWAIT) }
            }
            Method::Plain => {
                // SAFETY: `bytes` is readable for `length` bytes.
                unsafe { libc::write(fd, bytes.as_ptr().cast(), length) }
            }
        })
    }

    /// Moves up to `length` bytes inside the kernel; [`Transfer::NotNow`] does not say which end is to blame.
    pub fn splice(&mut self, dst: &mut Self, length: usize) -> Transfer {
        let (from, to) = (self.fd.as_raw_fd(), dst.fd.as_raw_fd());
        let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
        // SAFETY: both offsets are null (stream positions); the rest are integers.
        let moved =
            unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags) };
        outcome(moved)
    }

    fn repeat(&mut self, mut call: impl FnMut(Method) -> isize) -> Transfer {
        loop {
            match outcome(call(self.method)) {
                Transfer::Failed(libc::EINTR) => {}
                Transfer::Failed(libc::EOPNOTSUPP) if self.method == Method::NoWait => {
                    if let Err(errno) = self.set_nonblocking() {
                        return Transfer::Failed(errno);
                    }
                }
                done => return done,
            }
        }
    }

    fn set_nonblocking(&mut self) -> std::result::Result<(), c_int> {
        self.change_flags(|flags| flags | libc::O_NONBLOCK)?;
        self.restore = !self.nonblocking;
        self.nonblocking = true;
        self.method = Method::Plain;
        Ok(())
    }

    fn change_flags(&self, change: impl FnOnce(c_int) -> c_int) -> std::result::Result<(), c_int> {
        // SAFETY: F_GETFL takes no argument.
        let flags = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(last_errno());
        }
        // SAFETY: F_SETFL takes an integer.
        let done = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFL, change(flags)) };
        if done < 0 { Err(last_errno()) } else { Ok(()) }
    }
}

impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.restore {
            // A failure here would mean a dead descriptor, which needs no restoring.
            let _ = self.change_flags(|flags| flags & !libc::O_NONBLOCK);
        }
    }
}

fn outcome(count: isize) -> Transfer {
    match usize::try_from(count) {
        Ok(count) => Transfer::Bytes(count),
        Err(_) => match last_errno() {
            libc::EAGAIN => Transfer::NotNow,
            errno => Transfer::Failed(errno),
        },
    }
}
