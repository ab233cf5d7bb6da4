//! Devices that are not virtio: serial port, panic device, power.
//!
//! All are a few ports on the bus, called on vCPU threads; none of them ever waits. What they have to say goes to
//! [`crate::events::MachineEvents`].

pub mod power;
pub mod pvpanic;
pub mod serial;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use crate::events::{MachineEvent, MachineEvents};

    /// Remembers what happened.
    #[derive(Default)]
    pub struct Heard(Mutex<Vec<MachineEvent>>);

    impl Heard {
        pub fn new() -> Arc<Self> {
            Arc::default()
        }

        pub fn take(&self) -> Vec<MachineEvent> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl MachineEvents for Heard {
        fn happened(&self, event: MachineEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}
