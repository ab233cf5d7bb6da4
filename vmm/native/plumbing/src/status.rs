//! The status descriptor of the small programs: one line, written once.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::failure::{Failure, Result, check, last_errno};

/// Where the one status line goes.
#[derive(Debug)]
pub struct Status {
    fd: Option<OwnedFd>,
}

impl Status {
    /// Takes ownership of descriptor `number` (None: no line on success, errors on stderr).
    ///
    /// # Errors
    /// When the descriptor is not open.
    pub fn adopt(number: Option<c_int>) -> Result<Self> {
        let Some(number) = number else { return Ok(Self { fd: None }) };
        // CLOEXEC: the reader must see the end of the pipe although the started program lives on.
        // SAFETY: F_SETFD takes plain integers.
        let outcome = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        check(outcome, || format!("Status descriptor {number} is not open"))?;
        // SAFETY: the caller handed this descriptor over by naming it; no other owner exists in this process.
        Ok(Self { fd: Some(unsafe { OwnedFd::from_raw_fd(number) }) })
    }

    /// Writes `text` and a newline.
    ///
    /// # Errors
    /// EPIPE when nobody listens any more.
    pub fn report(&self, text: &str) -> Result<()> {
        match &self.fd {
            Some(fd) => write_line(fd.as_raw_fd(), text),
            None => Ok(()),
        }
    }

    /// Reports `error <failure>[<tab>pid <child>]`, on stderr when there is no status descriptor.
    ///
    /// `child` is a process that the caller has to reap.
    pub fn report_failure(&self, program: &str, failure: &Failure, child: Option<libc::pid_t>) {
        let delivered = match &self.fd {
            Some(fd) => write_line(fd.as_raw_fd(), &failure_line(failure, child)),
            None => {
                write_line(libc::STDERR_FILENO, &format!("{program}: {}", one_line(&failure.to_string())))
            }
        };
        // Nobody is left who could be told; the exit code still says that it failed.
        drop(delivered);
    }
}

fn failure_line(failure: &Failure, child: Option<libc::pid_t>) -> String {
    let text = one_line(&failure.to_string());
    match child {
        Some(pid) => format!("error {text}\tpid {pid}"),
        None => format!("error {text}"),
    }
}

/// Control characters could break the one-line protocol or a terminal.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}

fn write_line(fd: c_int, text: &str) -> Result<()> {
    let line = format!("{text}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        // SAFETY: `rest` is readable for the length that is passed.
        let written = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(written) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(_) if last_errno() == libc::EINTR => {}
            Err(_) => return Err(Failure::last("Cannot write the status line")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_line_is_one_line_and_names_the_child() {
        let failure = Failure::new("Cannot open /a\nb", libc::EACCES);
        assert_eq!(failure_line(&failure, None), "error Cannot open /a?b: Permission denied");
        assert_eq!(failure_line(&failure, Some(9)), "error Cannot open /a?b: Permission denied\tpid 9");
    }
}
