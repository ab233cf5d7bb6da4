//! The child's half: from clone to exec. Never returns.

use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use strato_plumbing::failure::{check, last_errno};
use strato_plumbing::{capabilities, mounts, netns, parent::ParentWatch};

use crate::args::Options;
use crate::root::{self, Entry};
use crate::{Failure, Result};

/// Written right before execve. End of file without it means that the child died on the way.
pub const EXEC_MARK: u8 = b'x';

/// What the child takes along.
pub struct Child<'a> {
    pub options: &'a Options,
    /// What the new root shows, if there is to be one.
    pub entries: &'a [Entry],
    pub netns: Option<OwnedFd>,
    pub parent: Option<ParentWatch>,
    pub verdict: OwnedFd,
}

/// Sets everything up and execs; on failure writes the reason and exits.
pub fn run(child: Child<'_>) -> ! {
    let Err(failure) = prepare(&child).and_then(|()| exec(&child.options.program, &child.verdict));
    let text = format!("{}\0{failure}", failure.errno());
    // SAFETY: the text is readable for the length that is passed. It is short, so one write takes it whole;
    // a launcher that has died needs no answer.
    unsafe { libc::write(child.verdict.as_raw_fd(), text.as_ptr().cast(), text.len()) };
    // SAFETY: _exit takes an integer; the copied C library state must not be flushed by a normal exit.
    unsafe { libc::_exit(1) }
}

/// Reads what [`run`] wrote, in the launcher.
pub fn interpret(text: &[u8]) -> Result<()> {
    let (marked, failure) = match text.split_first() {
        Some((&EXEC_MARK, rest)) => (true, rest),
        _ => (false, text),
    };
    if failure.is_empty() {
        return if marked {
            Ok(())
        } else {
            Err(Failure::refused("The new process was killed before it could start"))
        };
    }
    let words = String::from_utf8_lossy(failure);
    // The sentence holds the errno's text already.
    Err(Failure::refused(words.split_once('\0').map_or(words.as_ref(), |(_, sentence)| sentence)))
}

fn prepare(child: &Child<'_>) -> Result<()> {
    let options = child.options;
    if let Some(parent) = &child.parent {
        parent.die_with_parent()?;
    }
    if let (Some(fd), Some(path)) = (&child.netns, &options.netns) {
        netns::enter(fd.as_fd(), &path.to_string_lossy())?;
    }
    if options.new.mount {
        // Slave, not private: later mounts of the host must still arrive here, ours must not leave.
        mounts::mount(None, c"/", None, libc::MS_SLAVE | libc::MS_REC, None)?;
    }
    if let Some(directory) = &options.root {
        root::enter(directory, child.entries, options.mount_proc)?;
    } else if options.mount_proc {
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        mounts::mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None)?;
    }
    if let Some(name) = &options.hostname {
        // SAFETY: the string is readable for the length that is passed.
        let outcome = unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) };
        check(outcome, || format!("Cannot set host name {}", name.to_string_lossy()))?;
    }
    if let Some(path) = &options.chdir {
        // SAFETY: `path` is a valid C string.
        check(unsafe { libc::chdir(path.as_ptr()) }, || {
            format!("Cannot change to directory {}", path.to_string_lossy())
        })?;
    }
    if let Some(kept) = options.capabilities {
        capabilities::bound(kept)?;
    }
    if options.no_new_privileges {
        capabilities::no_new_privileges()?;
    }
    Ok(())
}

/// Replaces the process; returns only if that fails.
fn exec(program: &[CString], verdict: &OwnedFd) -> Result<std::convert::Infallible> {
    let mut argv: Vec<*const c_char> = program.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let Some(path) = program.first() else { return Err(Failure::refused("No program given")) };
    let mark = [EXEC_MARK];
    // SAFETY: one byte is readable at `mark`.
    let written = unsafe { libc::write(verdict.as_raw_fd(), mark.as_ptr().cast(), 1) };
    check(written, || "Cannot tell the launcher about the exec".into())?;
    // SAFETY: `path` is a C string and `argv` a null-terminated array of C strings; all outlive the call.
    unsafe { libc::execv(path.as_ptr(), argv.as_ptr()) };
    let errno = last_errno();
    let shown = path.to_string_lossy();
    // SAFETY: `path` is a valid C string.
    let exists = unsafe { libc::access(path.as_ptr(), libc::F_OK) } == 0;
    if errno == libc::ENOENT && exists {
        return Err(Failure::new(format!("Cannot execute {shown}, its interpreter is missing"), errno));
    }
    Err(Failure::new(format!("Cannot execute {shown}"), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpret_tells_success_death_and_failure_apart() {
        assert_eq!(interpret(b"x"), Ok(()));
        assert!(interpret(b"").unwrap_err().to_string().contains("killed"));
        assert_eq!(
            interpret(b"x2\0Cannot execute /x: gone").unwrap_err().to_string(),
            "Cannot execute /x: gone"
        );
        assert_eq!(interpret(b"1\0Cannot mount proc").unwrap_err().to_string(), "Cannot mount proc");
    }
}
