//! Giving a program to the kernel.
#![expect(unsafe_code, reason = "a system call")]

use std::ffi::{c_uint, c_ulong};

use strato_plumbing::{Failure, Result, check};

use crate::program::{Instruction, Otherwise};

// linux/seccomp.h
const SECCOMP_SET_MODE_FILTER: c_uint = 1;
const SECCOMP_GET_ACTION_AVAIL: c_uint = 2;
const SECCOMP_RET_KILL_PROCESS: u32 = 0x8000_0000;
const SECCOMP_RET_LOG: u32 = 0x7ffc_0000;

/// `struct sock_fprog`
#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

/// Confines the calling thread, and every thread and process that it makes from here on, to a program. For
/// ever. The thread has given up new privileges before (no_new_privs).
///
/// # Errors
/// The kernel has no filters.
pub fn load(instructions: &[Instruction]) -> Result<()> {
    let len = u16::try_from(instructions.len()).map_err(|_| {
        Failure::refused(format!("A filter of {} instructions is too long", instructions.len()))
    })?;
    let program = Program { len, filter: instructions.as_ptr() };
    // SAFETY: the program names `len` live instructions, which the kernel copies.
    let outcome =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0 as c_uint, &raw const program) };
    check(outcome, || "Cannot confine the thread to its system calls".into())?;
    Ok(())
}

/// Whether the kernel knows what to do with a call that no rule allows.
///
/// # Errors
/// It does not: it is older than Linux 4.14, or built without filters.
pub fn probe(otherwise: Otherwise) -> Result<()> {
    let action = match otherwise {
        Otherwise::Kill => SECCOMP_RET_KILL_PROCESS,
        Otherwise::Log => SECCOMP_RET_LOG,
    };
    // SAFETY: the kernel reads one u32.
    let outcome = unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0 as c_ulong, &raw const action)
    };
    check(outcome, || "This kernel cannot filter system calls".into())?;
    Ok(())
}
