//! Locks that outlive a panic of their holder: in the agent a panic ends the process anyway.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes the lock; never panics.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
