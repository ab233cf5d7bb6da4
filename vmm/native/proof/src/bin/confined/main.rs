//! A process that confines its threads and does everything that a role's threads ever do.
//!
//! `confined ROLE` ends well if the role's filter allows its work; `confined ROLE RULE` leaves out one rule, by its
//! index; `confined ROLE forbidden` makes a call that no role may. Roles are numbers (`Role::ALL`). For
//! tests/confinement.rs.
//!
//! `no_main`: Rust's start-up code would give every thread a stack for signal handlers, as no thread of a
//! library has in Python.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conversation;
mod devices;
mod disk;
mod files;
mod interface;
mod keeper;
mod memory;
mod processor;
mod sockets;
mod terminal;

use std::ffi::{CStr, c_char, c_int};

use strato_jail::{Otherwise, Role};

/// The C entry point.
// SAFETY: no other object of this program defines `main`; the C start-up code calls it with this signature.
#[unsafe(no_mangle)]
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "only the C start-up code calls it")]
pub extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let word = |index: c_int| {
        (index < argc).then(|| {
            // SAFETY: the C start-up code passes `argc` valid pointers in `argv`.
            let pointer = unsafe { *argv.add(index as usize) };
            // SAFETY: each is a NUL-terminated string that lives as long as the process.
            unsafe { CStr::from_ptr(pointer) }.to_str().unwrap()
        })
    };
    let role = Role::ALL[word(1).expect("a role's number").parse::<usize>().unwrap()];
    match word(2) {
        Some("forbidden") => return forbidden(role),
        Some(rule) => strato_jail::proof::leave_out(role, rule.parse().unwrap()),
        None => {}
    }
    strato_virtio::thread::confine(Otherwise::Kill).unwrap();
    // A panic of a device's thread is caught and would be told to strato-vmm, which ends then.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
    // First, while the allocator has nothing to fall back on.
    memory::work(role);
    work_of(role);
    0
}

/// All that threads of a role do.
fn work_of(role: Role) {
    match role {
        // Its work is Python's.
        Role::Control => {}
        Role::Vcpu => processor::work(),
        Role::Keeper => keeper::work(),
        Role::Service => conversation::work(),
        Role::Vsock => sockets::work(),
        Role::Fs => files::work(role),
        Role::FsPool => files::work(role),
        Role::Block => disk::work(),
        Role::BlockPool => disk::work_with_threads(),
        Role::Net => interface::work(),
        Role::Rng => devices::rng(),
        Role::Console => terminal::work(),
        Role::Balloon => devices::balloon(),
        // memory::work has been all of it.
        Role::Ram => {}
    }
}

/// Returns if the call is made.
fn forbidden(role: Role) -> c_int {
    strato_jail::confine_threads(Otherwise::Kill).unwrap();
    let thread = strato_virtio::thread::spawn(Some(role), "forbidden", || {
        // SAFETY: takes a string; nothing happens, since no folder has that name.
        unsafe { libc::syscall(libc::SYS_chroot, c"/nonexistent".as_ptr()) }
    });
    let _ = thread.unwrap().join();
    0
}
