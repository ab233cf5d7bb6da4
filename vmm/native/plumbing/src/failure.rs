//! The one error type: a sentence and an errno.

use std::ffi::{CStr, c_int};
use std::fmt;

/// What went wrong: a sentence that begins with a capital and names its object, and the errno behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    what: String,
    errno: c_int,
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with a known errno; the errno's text is appended when it is shown.
    pub fn new(what: impl Into<String>, errno: c_int) -> Self {
        Self { what: what.into(), errno }
    }

    /// A failure that carries the calling thread's current `errno`.
    pub fn last(what: impl Into<String>) -> Self {
        Self::new(what, last_errno())
    }

    /// A failure that is wholly explained by its sentence (bad arguments); its errno is EINVAL.
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(what, 0)
    }

    /// The positive errno; EINVAL when the sentence says it all.
    pub fn errno(&self) -> c_int {
        if self.errno == 0 { libc::EINVAL } else { self.errno }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errno == 0 {
            return f.write_str(&self.what);
        }
        write!(f, "{}: {}", self.what, errno_text(self.errno))
    }
}

impl std::error::Error for Failure {}

/// The calling thread's `errno`.
pub fn last_errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The C library's text of an errno, without Rust's "(os error N)".
pub fn errno_text(errno: c_int) -> String {
    let mut buffer = [0 as std::ffi::c_char; 128];
    // SAFETY: `buffer` is writable for the length that is passed; the XSI strerror_r ends it with NUL.
    let outcome = unsafe { libc::strerror_r(errno, buffer.as_mut_ptr(), buffer.len()) };
    if outcome != 0 {
        return format!("errno {errno}");
    }
    // SAFETY: strerror_r succeeded, so `buffer` holds a NUL-terminated string and outlives this borrow.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned()
}

/// Turns the C convention "-1 and errno" into a result; `what` is only built on failure.
///
/// # Errors
/// A [`Failure`] with the current errno when `outcome` is negative.
pub fn check<T: Default + PartialOrd>(outcome: T, what: impl FnOnce() -> String) -> Result<T> {
    if outcome < T::default() {
        let errno = last_errno();
        return Err(Failure::new(what(), errno));
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_appends_the_errno_text() {
        let failure = Failure::new("Cannot open /x", libc::ENOENT);
        assert_eq!(failure.to_string(), "Cannot open /x: No such file or directory");
        assert_eq!(failure.errno(), libc::ENOENT);
    }

    #[test]
    fn refused_shows_the_sentence_alone_and_counts_as_einval() {
        let failure = Failure::refused("Option --x is unknown");
        assert_eq!(failure.to_string(), "Option --x is unknown");
        assert_eq!(failure.errno(), libc::EINVAL);
    }

    #[test]
    fn check_passes_success_and_reads_errno_on_failure() {
        assert_eq!(check(7, String::new), Ok(7));
        // SAFETY: closing an impossible descriptor touches no memory and no real descriptor.
        let outcome = unsafe { libc::close(-1) };
        assert_eq!(
            check(outcome, || "Cannot close -1".into()),
            Err(Failure::new("Cannot close -1", libc::EBADF))
        );
    }
}
