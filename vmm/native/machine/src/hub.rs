//! Where everything that happens inside a machine comes together on its way to the owner.
//!
//! The guest can make events as fast as it can write to a port; its owner hears of each kind once until the machine
//! is reset. An end stops all vCPUs before it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::events::{MachineEvent, MachineEvents};
use crate::gate::Gate;

/// Between vCPUs and platform devices on one side, and the machine's owner on the other.
pub(crate) struct Hub {
    pub(crate) gate: Gate,
    owner: Arc<dyn MachineEvents>,
    panicked: AtomicBool,
    crash_loaded: AtomicBool,
}

impl Hub {
    pub(crate) fn new(owner: Arc<dyn MachineEvents>) -> Self {
        Self {
            gate: Gate::new(),
            owner,
            panicked: AtomicBool::new(false),
            crash_loaded: AtomicBool::new(false),
        }
    }

    /// After a reset the guest may do everything again.
    pub(crate) fn forget(&self) {
        self.panicked.store(false, Ordering::Relaxed);
        self.crash_loaded.store(false, Ordering::Relaxed);
        self.gate.forget_end();
    }
}

impl MachineEvents for Hub {
    fn happened(&self, event: MachineEvent) {
        let first = match &event {
            MachineEvent::Panicked => !self.panicked.swap(true, Ordering::Relaxed),
            MachineEvent::CrashLoaded => !self.crash_loaded.swap(true, Ordering::Relaxed),
            MachineEvent::Bug(_) => true,
            end => end.end().is_none_or(|name| self.gate.end(name)),
        };
        if first {
            self.owner.happened(event);
        }
    }
}
