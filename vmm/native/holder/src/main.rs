//! `strato-holder`: keeps a network namespace and a pid alive for one container.
//!
//! The shim starts one per container. Its pid is what containerd sees as the task's pid, and its
//! `/proc/PID/ns/net` is the container's network namespace on the host. It reports once, closes every
//! descriptor and sleeps until SIGTERM or SIGKILL; it must cost next to no memory.
#![cfg_attr(not(test), no_main)]

mod args;
mod title;

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::AsFd;

use strato_plumbing::failure::check;
use strato_plumbing::{Failure, Result, cgroup, netns, parent::ParentWatch, status::Status};

use crate::args::{Netns, Options};
use crate::title::Title;

const PROGRAM: &str = "strato-holder";

/// The C entry point.
// SAFETY: no other object of this program defines `main`; the C start-up code calls it with this signature.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "only the C start-up code calls it")]
pub extern "C" fn main(argc: c_int, argv: *mut *mut c_char) -> c_int {
    let words = collect(argc, argv);
    let (parsed, status_fd) = args::parse(&words);
    let status = match Status::adopt(status_fd) {
        Ok(status) => status,
        Err(failure) => {
            Status::adopt(None)
                .unwrap_or_else(|_| std::process::exit(1))
                .report_failure(PROGRAM, &failure, None);
            return 1;
        }
    };
    // SAFETY: argc and argv come from the C start-up code and nothing else uses the argument area.
    let title = unsafe { Title::of_process(argc, argv) };
    match parsed.and_then(|options| prepare(&options, title)).and_then(|()| status.report("ready")) {
        Ok(()) => hold(status),
        Err(failure) => {
            status.report_failure(PROGRAM, &failure, None);
            1
        }
    }
}

/// Everything up to "ready".
fn prepare(options: &Options, title: Title) -> Result<()> {
    default_signals();
    let parent = if options.die_with_parent { Some(ParentWatch::open()?) } else { None };
    for dir in cgroup::open_all(&options.cgroups)? {
        dir.enter()?;
    }
    match &options.netns {
        Netns::Inherited => {}
        Netns::Path(path) => {
            let fd = netns::open(path)?;
            netns::enter(fd.as_fd(), &path.to_string_lossy())?;
        }
        Netns::New => {
            // SAFETY: unshare takes an integer; this process has one thread.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) }, || "Cannot make a network namespace".into())?;
            netns::set_up(netns::control_socket()?.as_fd(), "lo")?;
        }
    }
    // A working directory on some container's mount would keep that mount busy.
    // SAFETY: the path is a C string literal.
    check(unsafe { libc::chdir(c"/".as_ptr()) }, || "Cannot change to directory /".into())?;
    if let Some(name) = &options.name {
        title.set(name);
    }
    match parent {
        Some(parent) => parent.die_with_parent(),
        None => Ok(()),
    }
}

/// A caller may have blocked or ignored SIGTERM; that must not make the holder immortal.
fn default_signals() {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
    // SAFETY: ignoring a signal installs no handler. A vanished status reader must be seen as EPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // SAFETY: sigset_t is a plain C structure for which all-zero is valid (and is the empty set).
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a live sigset_t; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Closes everything and sleeps for ever.
fn hold(status: Status) -> c_int {
    drop(status);
    // SAFETY: close_range takes integers; nothing in this process uses a descriptor after this line.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    loop {
        // SAFETY: pause takes nothing; it returns only after a handled signal, and no handler exists.
        unsafe { libc::pause() };
    }
}

fn collect(argc: c_int, argv: *mut *mut c_char) -> Vec<CString> {
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
