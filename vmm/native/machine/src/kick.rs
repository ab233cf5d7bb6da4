//! How a vCPU thread is called out of the guest: a flag that KVM looks at, and one real-time signal.
//!
//! KVM_RUN returns at once while `immediate_exit` is set, and a signal interrupts one that is in the guest. So no
//! kick is lost, whatever the thread does at that moment: set the flag first, then send the signal. The other way,
//! a signal that KVM_SET_SIGNAL_MASK lets through, would take the process's signal lock twice in every KVM_RUN
//! (Documentation/virt/kvm/api.rst, "immediate_exit").
//!
//! The signal is blocked in every thread of the library but those of vCPUs, where it does nothing but interrupt.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{KvmRunWrapper, VcpuFd};
use strato_plumbing::{Failure, Result};

extern "C" fn nothing(_: libc::c_int) {}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the signal harmless in this process. Its default would be the end of it.
fn install() -> Result<()> {
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
    OUTCOME.get_or_init(handler).clone()
}

/// Lets kicks through to the calling thread, which is a vCPU's.
pub(crate) fn listen() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set and cannot fail.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written just now.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: the set is a live local and the number is a signal's.
    unsafe { libc::sigaddset(&raw mut set, signal()) };
    // SAFETY: the set is live; it only fails for an unknown first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
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
    /// No memory, or no handler for the signal.
    pub(crate) fn new(vcpu: &VcpuFd) -> Result<Self> {
        install()?;
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
        // SAFETY: tgkill takes plain numbers; the thread is of this process and its handler is installed.
        let outcome = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The vCPU has heard.
    pub(crate) fn clear(&mut self) {
        self.set_flag(0);
    }
}
