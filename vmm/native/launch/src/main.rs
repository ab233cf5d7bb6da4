//! `strato-launch`: start a program in new namespaces and cgroups, as a child of the caller.
//!
//! The caller (the shim, or `strato vm run`) starts this program and gets the program it wants as its own
//! child: the child is made with CLONE_PARENT, so the launcher can exit at once and the caller can wait for
//! the reported pid. The process is single-threaded throughout and lives for a few milliseconds.
//!
//! `no_main` keeps Rust's start-up code away: it would set SIGPIPE to ignored, which the started program
//! would inherit.
#![cfg_attr(not(test), no_main)]

mod args;
mod child;
mod elf;
mod libraries;
mod root;
mod spawn;

use std::ffi::{CStr, CString, c_char, c_int};

use strato_plumbing::{Failure, Result, status::Status};

const PROGRAM: &str = "strato-launch";

/// The C entry point.
// SAFETY: no other object of this program defines `main`; the C start-up code calls it with this signature.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "only the C start-up code calls it")]
pub extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let words = collect(argc, argv);
    // The status descriptor is looked for first, so that even a bad option is reported to the caller.
    let status = match args::find_status_fd(&words).and_then(Status::adopt) {
        Ok(status) => status,
        Err(failure) => {
            Status::adopt(None)
                .unwrap_or_else(|_| std::process::exit(1))
                .report_failure(PROGRAM, &failure, None);
            return 1;
        }
    };
    match run(&words, &status) {
        Ok(()) => 0,
        Err((failure, child)) => {
            status.report_failure(PROGRAM, &failure, child);
            1
        }
    }
}

/// Parse, start, report. The pid in the error is a dead child that the caller has to reap.
fn run(words: &[CString], status: &Status) -> std::result::Result<(), (Failure, Option<libc::pid_t>)> {
    let options = args::parse(words).map_err(|failure| (failure, None))?;
    let started = spawn::spawn(&options)?;
    let told = status.report(&format!("pid {}", started.pid));
    told.map_err(|failure| {
        // Nobody knows of the child, so nobody would ever end it.
        started.kill();
        (failure, Some(started.pid))
    })
}

fn collect(argc: c_int, argv: *const *const c_char) -> Vec<CString> {
    let count = usize::try_from(argc).unwrap_or(0);
    let mut words = Vec::with_capacity(count);
    for index in 1..count {
        // SAFETY: the C start-up code passes `argc` valid pointers in `argv`, and index < argc.
        let pointer = unsafe { *argv.add(index) };
        // SAFETY: each argument is a NUL-terminated string that lives as long as the process.
        words.push(unsafe { CStr::from_ptr(pointer) }.to_owned());
    }
    words
}
