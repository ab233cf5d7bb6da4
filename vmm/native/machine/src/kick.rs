//! How a vCPU thread is called out of the guest: a flag that KVM looks at, and one real-time signal.
//!
//! KVM_RUN returns at once while `immediate_exit` is set, and a signal interrupts one that is in the guest. So no
//! kick is lost, whatever the thread does at that moment: set the flag first, then send the signal.
//!
//! The signal is blocked in every thread of the library and in the one that makes vCPUs, which is Python's. A vCPU's
//! thread lets it through from one stand at the gate to the next ([`Listening`]), where it does nothing but interrupt.
//! KVM_SET_SIGNAL_MASK would do so for KVM_RUN alone, but it takes the signal lock of the whole process twice in each:
//! all vCPUs would meet there at every exit (Documentation/virt/kvm/api.rst, "immediate_exit").
#![expect(unsafe_code, reason = "signals, and a flag that the kernel reads")]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{KvmRunWrapper, VcpuFd};
use strato_plumbing::{Failure, Result};

extern "C" fn nothing(_: libc::c_int) {}

/// The first one that the C library has left free.
pub(crate) fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the signal harmless in this process, whose end it would be by default, and blocks it in the calling thread and
/// those that it starts. Comes before the first kick.
///
/// # Errors
/// The kernel's.
pub(crate) fn prepare() -> Result<()> {
    static OUTCOME: OnceLock<Result<()>> = OnceLock::new();
    let handler = || {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: sigaction is a plain C structure for which all-zero is valid: no mask, no flags.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = nothing as *const () as usize;
        // A system call of a device that waits on a vCPU thread goes on; KVM_RUN is interrupted nevertheless.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the action is live, and its handler touches nothing.
        if unsafe { libc::sigaction(signal(), action, std::ptr::null_mut()) } != 0 {
            return Err(Failure::last("Cannot install the handler of the signal that stops vCPUs"));
        }
        Ok(())
    };
    mask(libc::SIG_BLOCK);
    OUTCOME.get_or_init(handler).clone()
}

/// While it lives, kicks reach the thread that made it, which is a vCPU's. It must not leave that thread.
pub(crate) struct Listening(PhantomData<*const ()>);

impl Listening {
    pub(crate) fn begin() -> Self {
        mask(libc::SIG_UNBLOCK);
        Self(PhantomData)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        mask(libc::SIG_BLOCK);
    }
}

/// Blocks the signal in the calling thread, or lets it through.
fn mask(how: libc::c_int) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set and cannot fail.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written just now.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: the set is a live local and the number is a signal's.
    unsafe { libc::sigaddset(&raw mut set, signal()) };
    // SAFETY: the set is live; it only fails for an unknown first argument.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

/// The calling thread, as the kernel numbers it.
pub(crate) fn this_thread() -> libc::pid_t {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// The way to one vCPU.
pub(crate) struct Kick {
    run: KvmRunWrapper,
    thread: Option<libc::pid_t>,
}

impl Kick {
    /// Maps the vCPU's flag a second time, so that it can be set while the vCPU runs.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(vcpu: &VcpuFd) -> Result<Self> {
        let run = KvmRunWrapper::mmap_from_fd(vcpu, size_of::<kvm_bindings::kvm_run>());
        let run = run.map_err(|error| Failure::new("Cannot map a vCPU's run structure", error.errno()))?;
        Ok(Self { run, thread: None })
    }

    /// Whose vCPU it is; None once that thread has ended.
    pub(crate) fn set_thread(&mut self, thread: Option<libc::pid_t>) {
        self.thread = thread;
    }

    pub(crate) fn thread(&self) -> Option<libc::pid_t> {
        self.thread
    }

    fn set_flag(&mut self, value: u8) {
        let flag = &raw mut self.run.as_mut_ref().immediate_exit;
        // SAFETY: the byte is mapped as long as `run`; it is only read elsewhere, by the kernel, which atomic
        // accesses are meant for.
        unsafe { AtomicU8::from_ptr(flag) }.store(value, Ordering::SeqCst);
    }

    /// Calls the vCPU out of the guest, now or the next time that it enters.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        self.set_flag(1);
        let Some(thread) = self.thread else { return Ok(()) };
        // SAFETY: tgkill takes plain numbers; the thread is of this process, which is prepared.
        let outcome = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The vCPU has heard.
    pub(crate) fn clear(&mut self) {
        self.set_flag(0);
    }
}
