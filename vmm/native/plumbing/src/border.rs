//! What the C borders of the libraries have in common: results become 0 or a negative errno, the sentence of a
//! failure is kept for the thread, and a panic never gets across.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Failure, Result};

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs one call of `library`: 0 or a negative errno, whatever happens inside.
pub fn run(library: &str, work: impl FnOnce() -> Result<()>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(_) => {
            Failure::new(format!("A bug in {library} (it panicked; see stderr)"), libc::ENOTRECOVERABLE)
        }
    };
    LAST_ERROR.with(|text| *text.borrow_mut() = failure.to_string());
    -failure.errno()
}

/// Copies the sentence of the calling thread's last failure, cut and NUL-terminated; returns its full length.
///
/// # Safety
/// `buffer` is null or writable for `capacity` bytes.
pub unsafe fn last_error(buffer: *mut c_char, capacity: usize) -> usize {
    LAST_ERROR.with(|text| {
        let text = text.borrow();
        if !buffer.is_null() && capacity > 0 {
            let count = text.len().min(capacity - 1);
            // SAFETY: `buffer` is writable for `capacity` bytes and count < capacity.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, count) };
            // SAFETY: as above.
            unsafe { buffer.add(count).write(0) };
        }
        text.len()
    })
}

/// The failure of a call that got no `what`.
pub fn null(what: &str) -> Failure {
    Failure::refused(format!("Argument {what} is a null pointer"))
}

/// A string that may be left out.
///
/// # Safety
/// `text` is null or a NUL-terminated string that outlives the call.
pub unsafe fn optional<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: passed on to the caller.
    if text.is_null() { None } else { Some(unsafe { CStr::from_ptr(text) }) }
}

/// A string that must be there.
///
/// # Errors
/// It is null.
///
/// # Safety
/// As [`optional`].
pub unsafe fn required<'a>(text: *const c_char, what: &str) -> Result<&'a CStr> {
    // SAFETY: passed on to the caller.
    unsafe { optional(text) }.ok_or_else(|| null(what))
}

/// Writes an out-parameter.
///
/// # Errors
/// It is null.
///
/// # Safety
/// `place` is null or writable.
pub unsafe fn store<T>(place: *mut T, value: T) -> Result<()> {
    if place.is_null() {
        return Err(null("ret"));
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { place.write(value) };
    Ok(())
}

/// Hands a descriptor over; one that cannot be handed over is closed.
///
/// # Errors
/// As [`store`].
///
/// # Safety
/// As [`store`].
pub unsafe fn store_fd(place: *mut i32, fd: OwnedFd) -> Result<()> {
    if place.is_null() {
        return Err(null("ret"));
    }
    // SAFETY: passed on to the caller.
    unsafe { store(place, fd.into_raw_fd()) }
}

/// Refuses a struct of another size than this library's.
///
/// # Errors
/// The sizes differ.
pub fn check_size<T>(size: u64, name: &str) -> Result<()> {
    if size == size_of::<T>() as u64 {
        return Ok(());
    }
    Err(Failure::refused(format!("{name} has {size} bytes, this library wants {}", size_of::<T>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence() -> String {
        let mut buffer = [0 as c_char; 200];
        // SAFETY: the buffer is writable for its length.
        unsafe { last_error(buffer.as_mut_ptr(), buffer.len()) };
        // SAFETY: the call has ended it with NUL.
        unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn border_keeps_the_text_and_returns_the_errno() {
        assert_eq!(run("l", || Err(Failure::new("Cannot frob", libc::EPERM))), -libc::EPERM);
        assert_eq!(sentence(), "Cannot frob: Operation not permitted");
        assert_eq!(run("l", || Ok(())), 0);
    }

    #[test]
    fn border_stops_a_panic() {
        assert_eq!(run("libfrob.so", || panic!("on purpose")), -libc::ENOTRECOVERABLE);
        assert!(sentence().starts_with("A bug in libfrob.so"));
    }

    #[test]
    fn last_error_is_cut_and_tells_its_length() {
        run("l", || Err(Failure::refused("abcdef")));
        let mut buffer = [1 as c_char; 4];
        // SAFETY: the buffer is writable for its length.
        assert_eq!(unsafe { last_error(buffer.as_mut_ptr(), 4) }, 6);
        assert_eq!(buffer, [b'a' as c_char, b'b' as c_char, b'c' as c_char, 0]);
        // SAFETY: null is allowed.
        assert_eq!(unsafe { last_error(std::ptr::null_mut(), 0) }, 6);
    }
}
