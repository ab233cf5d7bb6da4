//! What is tested: a device core with something behind it.

use strato_virtio::record::RecordError;
use strato_virtio::{DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Progress};

use crate::choices::Choices;
use crate::machine::Machine;
use crate::subjects::{balloon, block, console, fs, net, rng, vsock};

/// What a driver would put into one chain.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Bytes for the device to read.
    pub readable: Vec<u8>,
    /// Bytes for the device to write.
    pub writable: u32,
}

/// A queue as its driver uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueUse {
    /// The device answers every chain, without anything else having to happen.
    Requests,
    /// The device keeps chains until it has something to say.
    Buffers,
}

/// A device under test with its host side.
pub trait Subject {
    /// A core on the host side. Called again after the one before was dropped (restore on a new device).
    fn core(&mut self) -> Box<dyn DeviceCore>;

    /// How each queue is used, in order.
    fn queues(&self) -> &'static [QueueUse];

    /// A request for `queue` that makes sense, or nearly.
    fn request(&self, choices: &mut Choices<'_>, queue: u16) -> Request;

    /// Something happens on the host.
    fn host_acts(&mut self, _choices: &mut Choices<'_>) {}

    /// Whether the driver gives memory up by what it says.
    fn gives_memory_up(&self) -> bool {
        false
    }

    /// Whether a device may say for this reason that its state cannot be saved or restored. `config` is what the
    /// driver was told.
    fn may_refuse_saved(&self, _reason: &str, _config: &[u8]) -> bool {
        false
    }

    /// Panics unless the device serves an honest driver, which has just begun.
    fn probe(&mut self, machine: &mut Machine);
}

/// A kind of subject and how to make one.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The device's name.
    pub name: &'static str,
    /// Makes one.
    pub make: fn() -> Box<dyn Subject>,
}

/// All kinds.
pub const KINDS: &[Kind] = &[
    Kind { name: "rng", make: rng::make },
    Kind { name: "rng-limited", make: rng::make_limited },
    Kind { name: "block", make: block::make },
    Kind { name: "block-pool", make: block::make_pool },
    Kind { name: "block-readonly", make: block::make_readonly },
    Kind { name: "block-limited", make: block::make_limited },
    Kind { name: "fs", make: || fs::make(0, None) },
    Kind { name: "fs-pool", make: || fs::make(2, None) },
    Kind { name: "fs-window", make: || fs::make(1, Some(fs::WINDOW_LENGTH)) },
    Kind { name: "vsock", make: vsock::make },
    Kind { name: "net", make: net::make },
    Kind { name: "net-pairs", make: net::make_pairs },
    Kind { name: "net-limited", make: net::make_limited },
    Kind { name: "console", make: console::make },
    Kind { name: "balloon", make: balloon::make },
];

/// A device without anything, to stand in while another one is exchanged.
pub(crate) struct Nothing;

impl DeviceCore for Nothing {
    fn info(&self) -> &DeviceInfo {
        static INFO: DeviceInfo = DeviceInfo {
            device_type: 0,
            name: "nothing",
            features: strato_virtio::RING_FEATURES,
            queue_sizes: Vec::new(),
            config_len: 0,
        };
        &INFO
    }

    fn process_queue(&mut self, _io: &mut DeviceIo<'_>, _queue: u16) -> Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _record: &[u8]) -> Result<(), RecordError> {
        Ok(())
    }
}
