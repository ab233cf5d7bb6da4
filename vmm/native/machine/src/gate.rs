//! Where vCPU threads stand still: a barrier that the machine closes and opens.
//!
//! A vCPU comes here only when it was called out of the guest (or has yet to enter it), so the gate costs a running
//! guest nothing. It waits for no clock: whoever closes it is woken by the last vCPU that parks.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use strato_plumbing::{Failure, Result};

use crate::kick::Kick;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Park,
    Exit,
}

/// What a vCPU is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Enter the guest; `parked`: it stood here before.
    Run {
        /// Whether the vCPU waited.
        parked: bool,
    },
    /// Leave: the machine is going.
    Exit,
}

struct State {
    order: Order,
    kicks: Vec<Kick>,
    parked: usize,
    /// The end that the guest has come to, until a reset.
    ended: Option<&'static str>,
    /// A thread has died of a bug.
    lost: bool,
}

impl State {
    fn all_parked(&self) -> bool {
        self.parked == self.kicks.len()
    }

    fn check(&self) -> Result<()> {
        if self.lost {
            return Err(Failure::new("Machine has lost a vCPU to a bug: end it", libc::ENOTRECOVERABLE));
        }
        match self.ended {
            None => Ok(()),
            Some(end) => {
                Err(Failure::refused(format!("Guest has come to an end ({end}): reset the machine first")))
            }
        }
    }

    fn call_all(&mut self) {
        for kick in &mut self.kicks {
            // Fails only for a thread that has ended, which takes its number out of here first.
            let _ = kick.send();
        }
    }
}

/// See the module. Closed at first.
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let state = State { order: Order::Park, kicks: Vec::new(), parked: 0, ended: None, lost: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// No code panics while it holds the lock.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a vCPU before its thread starts; returns its place.
    pub(crate) fn add(&self, kick: Kick) -> usize {
        let mut state = self.locked();
        state.kicks.push(kick);
        state.kicks.len() - 1
    }

    /// The vCPU at `place` is run by `thread` from now on.
    pub(crate) fn arrive(&self, place: usize, thread: libc::pid_t) {
        if let Some(kick) = self.locked().kicks.get_mut(place) {
            kick.set_thread(Some(thread));
        }
    }

    /// The thread at `place` ends without being told to: it counts as parked for ever, and the others park.
    pub(crate) fn lose(&self, place: usize) {
        let mut state = self.locked();
        if let Some(kick) = state.kicks.get_mut(place) {
            kick.set_thread(None);
        }
        state.parked += 1;
        state.lost = true;
        if state.order == Order::Run {
            state.order = Order::Park;
            state.call_all();
        }
        self.changed.notify_all();
    }

    /// What the vCPU at `place` is to do; waits while the gate is closed.
    pub(crate) fn pass(&self, place: usize) -> Pass {
        let mut state = self.locked();
        let parked = state.order != Order::Run;
        if parked {
            state.parked += 1;
            self.changed.notify_all();
            while state.order == Order::Park {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.order == Order::Exit {
                if let Some(kick) = state.kicks.get_mut(place) {
                    kick.set_thread(None);
                }
                return Pass::Exit;
            }
            state.parked -= 1;
        }
        // Under the lock, as every call is: one that comes after this is not forgotten.
        if let Some(kick) = state.kicks.get_mut(place) {
            kick.clear();
        }
        Pass::Run { parked }
    }

    /// Closes the gate and waits until every vCPU stands at it. False: one did not come before the deadline, and
    /// the gate is open again (unless the guest has come to an end meanwhile).
    pub(crate) fn close(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.locked();
        let closed = state.order == Order::Run;
        if closed {
            state.order = Order::Park;
            state.call_all();
        }
        while !state.all_parked() {
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if closed && state.ended.is_none() && !state.lost {
                    state.order = Order::Run;
                    self.changed.notify_all();
                }
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Whether the vCPUs can be let go.
    ///
    /// # Errors
    /// The guest has come to an end, or the machine has lost a thread.
    pub(crate) fn check(&self) -> Result<()> {
        self.locked().check()
    }

    /// Lets the vCPUs go.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(crate) fn open(&self) -> Result<()> {
        let mut state = self.locked();
        state.check()?;
        state.order = Order::Run;
        self.changed.notify_all();
        Ok(())
    }

    /// The guest has come to an end: all vCPUs park, whoever says so among them. False: it had already.
    pub(crate) fn end(&self, end: &'static str) -> bool {
        let mut state = self.locked();
        if state.ended.is_some() {
            return false;
        }
        state.ended = Some(end);
        if state.order == Order::Run {
            state.order = Order::Park;
            state.call_all();
        }
        true
    }

    /// Forgets the end that the guest has come to.
    pub(crate) fn forget_end(&self) {
        self.locked().ended = None;
    }

    /// Whether the guest has come to an end, or its machine.
    pub(crate) fn has_ended(&self) -> bool {
        self.locked().check().is_err()
    }

    /// Whether vCPUs may be in the guest.
    pub(crate) fn is_open(&self) -> bool {
        self.locked().order == Order::Run
    }

    /// How many vCPUs stand here.
    #[cfg(test)]
    pub(crate) fn parked(&self) -> usize {
        self.locked().parked
    }

    /// Tells all vCPU threads to leave.
    pub(crate) fn dismiss(&self) {
        let mut state = self.locked();
        state.order = Order::Exit;
        state.call_all();
        self.changed.notify_all();
    }

    /// The thread of each vCPU, in the order of their places; None where one has died.
    pub(crate) fn threads(&self) -> Vec<Option<libc::pid_t>> {
        self.locked().kicks.iter().map(Kick::thread).collect()
    }
}
