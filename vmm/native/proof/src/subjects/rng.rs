//! The entropy device.

use strato_devices::BucketConfig;
use strato_devices::rng::{Rng, RngConfig};
use strato_virtio::DeviceCore;

use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

struct Entropy(RngConfig);

pub(crate) fn make() -> Box<dyn Subject> {
    Box::new(Entropy(RngConfig::default()))
}

/// One or two requests at once, then one in some hundred microseconds.
pub(crate) fn make_limited() -> Box<dyn Subject> {
    Box::new(Entropy(RngConfig { limit: BucketConfig { rate: 1 << 20, burst: 256 } }))
}

impl Subject for Entropy {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        Box::new(Rng::new(self.0).unwrap())
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Requests]
    }

    fn request(&self, choices: &mut Choices<'_>, _queue: u16) -> Request {
        Request { readable: Vec::new(), writable: choices.below(300) as u32 }
    }

    fn probe(&mut self, machine: &mut Machine) {
        assert_eq!(machine.ask(0, &[], 64).len(), 64);
    }
}
