//! Threads of the device side: named, with a small stack, deaf to signals, and confined to their role.
//!
//! The process around them may be Python, whose signal handlers belong to its main thread. A signal that the
//! kernel gave to one of these threads would interrupt a device instead.
//!
//! Once the process has asked for it (`strato_jail::confine_threads`), a thread's first act is to give up what its
//! role does not need.

use std::io;
use std::mem::MaybeUninit;
use std::thread::{Builder, JoinHandle};

use strato_jail::Role;

/// Cores keep their buffers on the heap. Below two MiB a stack never becomes a huge page at its first touch.
const STACK_SIZE: usize = 512 * 1024;

/// What the kernel shows of a thread's name.
const NAME_LEN: usize = 15;

/// Signals that tell of a fault of the thread itself: blocked ones would kill without a word.
const FAULTS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP];

/// Starts a thread. `name` is cut to what the kernel shows.
///
/// # Errors
/// No thread to be had, or one without a role where threads are confined.
pub fn spawn<T: Send + 'static>(
    role: Option<Role>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    if role.is_none() && strato_jail::confinement().is_some() {
        return Err(io::Error::other(format!("Thread {name} has no role that it could be confined to")));
    }
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(NAME_LEN).collect();
    // The mask is inherited: there is no moment at which the new thread could be chosen for a signal.
    let former = mask(&blocked());
    let thread = Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || {
        if let Some(role) = role {
            confine(role);
        }
        work()
    });
    mask(&former);
    thread
}

/// Nothing may run in a thread that has more power than its role.
fn confine(role: Role) {
    if let Err(failure) = strato_jail::enter(role) {
        eprintln!("error Thread of role {role:?} cannot be confined: {failure}");
        std::process::abort();
    }
}

fn blocked() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset writes the whole set and cannot fail.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: written just now.
    let mut set = unsafe { set.assume_init() };
    for signal in FAULTS {
        // SAFETY: the set is a live local and the number is a signal's.
        unsafe { libc::sigdelset(&raw mut set, signal) };
    }
    set
}

/// Sets the calling thread's mask and returns what it was.
fn mask(set: &libc::sigset_t) -> libc::sigset_t {
    let mut former = *set;
    // SAFETY: both sets are live; it only fails for an unknown first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, &raw mut former) };
    former
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked_signals() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    fn bit(signal: i32) -> u64 {
        1 << (signal - 1)
    }

    #[test]
    fn threads_block_signals_and_their_creator_goes_on_as_before() {
        let before = blocked_signals();
        let inside = spawn(None, "t", blocked_signals).unwrap().join().unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD, libc::SIGHUP, libc::SIGPIPE] {
            assert_ne!(inside & bit(signal), 0, "signal {signal}");
        }
        assert_eq!(inside & bit(libc::SIGSEGV), 0);
        assert_eq!(blocked_signals(), before);
    }

    #[test]
    fn names_are_cut_and_show() {
        let name = || std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        let shown = spawn(None, "a-device\0with a long name", name).unwrap().join().unwrap();
        assert_eq!(shown.trim(), "a-devicewithalo");
    }
}
