//! Random bytes of the host's kernel.
#![expect(unsafe_code, reason = "a system call")]

use std::io;

/// Fills `data` from getrandom(2). Does not wait: the host's pool is initialised long before a VM starts.
///
/// # Errors
/// What the kernel said; `data` is then partly filled.
pub fn fill_random(data: &mut [u8]) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        // SAFETY: the pointer and length describe `rest`, which is ours to write.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), libc::GRND_NONBLOCK) };
        match usize::try_from(got) {
            Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
