//! What `ps` shows: the thread name and the argument area.

use std::ffi::{CStr, CString, c_char, c_int};

/// The process's argument area, the bytes behind `/proc/PID/cmdline`.
#[derive(Debug)]
pub struct Title {
    start: *mut c_char,
    length: usize,
}

impl Title {
    /// Measures the argument area.
    ///
    /// # Safety
    /// `argc` and `argv` must be those of `main`, and nothing may use the arguments in place afterwards.
    pub unsafe fn of_process(argc: c_int, argv: *mut *mut c_char) -> Self {
        let mut title = Self { start: std::ptr::null_mut(), length: 0 };
        for index in 0..usize::try_from(argc).unwrap_or(0) {
            // SAFETY: the caller vouches for `argc` valid pointers.
            let word = unsafe { *argv.add(index) };
            if title.start.is_null() {
                title.start = word;
            }
            if word != title.start.wrapping_add(title.length) {
                break; // not contiguous: use what came before
            }
            // SAFETY: the caller vouches for NUL-terminated strings.
            title.length += unsafe { CStr::from_ptr(word) }.to_bytes_with_nul().len();
        }
        title
    }

    /// Shows `name` instead of the arguments, cut to the room there is.
    pub fn set(self, name: &CString) {
        // SAFETY: PR_SET_NAME reads a C string and cuts it to 15 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
        let Some(room) = self.length.checked_sub(1) else { return };
        let count = name.as_bytes().len().min(room);
        // SAFETY: `start` and `length` describe the writable argument area of this process (of_process).
        unsafe { std::ptr::write_bytes(self.start, 0, self.length) };
        // SAFETY: `count` is less than the area's length, and the two areas do not overlap: `name` is a copy.
        unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), self.start, count) };
    }
}
