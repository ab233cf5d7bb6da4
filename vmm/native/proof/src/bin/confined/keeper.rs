//! The thread that starts all others, when it has been confined itself: nobody starts a thread in another way then.

use strato_jail::Role;
use strato_virtio::thread::{seal, spawn};

pub(crate) fn work() {
    seal().unwrap();
    // One that keeps capabilities, and one that keeps none.
    for role in [Role::Fs, Role::Rng] {
        spawn(Some(role), "late", || ()).unwrap().join().unwrap();
    }
}
