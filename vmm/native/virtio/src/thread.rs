//! Threads of the device side: named, with a small stack, deaf to signals, and confined to their role.
//!
//! The process around them may be Python, whose signal handlers belong to its main thread. A signal that the
//! kernel gave to one of these threads would interrupt a device instead.
//!
//! Once the process has asked for it ([`confine`]), a thread's first act is to give up what its role does not need.
//! From then on one thread, the keeper, starts all others: those that come after everybody else has been confined
//! need capabilities that only the keeper still has then, and its system calls are all of theirs together.
#![expect(unsafe_code, reason = "signal masks")]

use std::io;
use std::mem::MaybeUninit;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use strato_jail::{Otherwise, Role};
use strato_plumbing::{Failure, Result};

/// Cores keep their buffers on the heap. Below two MiB a stack never becomes a huge page at its first touch.
const STACK_SIZE: usize = 512 * 1024;

/// What the kernel shows of a thread's name.
const NAME_LEN: usize = 15;

/// Signals that tell of a fault of the thread itself: blocked ones would kill without a word.
const FAULTS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP];

type Order = Box<dyn FnOnce() + Send>;

/// Gives the keeper orders; it carries them out one after the other, and lives as long as the process.
static KEEPER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();

/// From here on threads confine themselves, and the keeper starts them.
///
/// # Errors
/// The kernel cannot confine threads, or there is no thread to be had.
pub fn confine(otherwise: Otherwise) -> Result<()> {
    crate::allocator::settle();
    strato_jail::confine_threads(otherwise)?;
    let (orders, inbox) = channel::<Order>();
    let keep = move || inbox.iter().for_each(|order| order());
    begin(None, "keeper", keep).map_err(|error| {
        Failure::new(
            "Cannot start the thread that starts threads",
            error.raw_os_error().unwrap_or(libc::EAGAIN),
        )
    })?;
    // Whoever comes second has confined nothing anew, and his keeper ends.
    KEEPER.get_or_init(|| Mutex::new(orders));
    Ok(())
}

/// Confines the keeper, too: once all threads that there are at first have been started.
///
/// # Errors
/// The kernel refuses.
pub fn seal() -> Result<()> {
    ordered(|| strato_jail::enter(Role::Keeper))
        .unwrap_or_else(|| Err(Failure::refused("Threads are not confined: there is nothing to seal")))
}

/// What the keeper makes of an order; None: there is no keeper.
fn ordered<T: Send + 'static>(order: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = channel();
    let keeper = KEEPER.get()?.lock().unwrap_or_else(PoisonError::into_inner);
    keeper.send(Box::new(move || drop(answer.send(order())))).ok()?;
    drop(keeper);
    answered.recv().ok()
}

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
    let name = name.to_owned();
    for_all(move || begin(role, &name, work))?
}

/// Does something on the keeper, once there is one: it has the capabilities of all other threads, and the caller
/// may have given his up.
///
/// # Errors
/// The keeper is no more.
pub fn for_all<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if KEEPER.get().is_none() {
        return Ok(work());
    }
    ordered(work).ok_or_else(|| io::Error::other("The thread that starts threads has ended"))
}

fn begin<T: Send + 'static>(
    role: Option<Role>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(NAME_LEN).collect();
    // The mask is inherited: there is no moment at which the new thread could be chosen for a signal.
    let former = mask(&blocked());
    let thread = Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || {
        if let Some(role) = role {
            enter(role);
        }
        work()
    });
    mask(&former);
    thread
}

/// Nothing may run in a thread that has more power than its role.
fn enter(role: Role) {
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
