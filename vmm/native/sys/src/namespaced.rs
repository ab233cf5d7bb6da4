//! Work inside of another network namespace, in a thread that exists for nothing else.
//!
//! A thread that has entered a foreign namespace must not go on to do anything else, so it ends; the calling
//! process never changes its own namespace and never forks.

use std::os::fd::{BorrowedFd, RawFd};

use strato_plumbing::{Failure, Result, netns};

/// Enough for a few system calls; the default of 2 MiB would be mapped for nothing.
const STACK_BYTES: usize = 128 * 1024;

/// Runs `work` in the network namespace behind `netns_fd`; None: right here.
///
/// # Errors
/// Those of `work`, and of entering the namespace.
pub fn run<T: Send>(netns_fd: Option<RawFd>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(raw) = netns_fd else { return work() };
    if raw < 0 {
        return Err(Failure::new(format!("Network namespace descriptor {raw} is not open"), libc::EBADF));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("strato-netns".into()).stack_size(STACK_BYTES);
        let spawned = thread.spawn_scoped(scope, move || {
            // SAFETY: the caller keeps the descriptor open during this call (a closed one is only EBADF).
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            netns::enter(fd, &format!("of descriptor {raw}"))?;
            work()
        });
        let handle = spawned.map_err(|error| {
            Failure::new("Cannot start a thread", error.raw_os_error().unwrap_or(libc::EAGAIN))
        })?;
        handle
            .join()
            .unwrap_or_else(|_| Err(Failure::new("The namespace thread panicked", libc::ENOTRECOVERABLE)))
    })
}
