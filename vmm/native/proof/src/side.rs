//! What stands between a driver and a core: nothing, or a shell.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use strato_virtio::mock::{MockNotifier, MockQueue};
use strato_virtio::{DeviceCore, DeviceHost, GuestRamHandle, MAX_RING_SIZE, RingStart, Unobserved};
use strato_virtio_mmio::mock::{MockDriver, NEEDS_RESET, RUNNING};
use strato_virtio_mmio::{MmioDevice, MmioError};

/// How a device is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The test turns the crank: everything happens in one thread, and can be repeated.
    Bare,
    /// Behind memory-mapped registers, with a thread of its own.
    Mmio,
}

/// All carriers.
pub const CARRIERS: [Carrier; 2] = [Carrier::Bare, Carrier::Mmio];

/// A core with what carries it.
pub enum Side {
    /// See [`Carrier::Bare`].
    Bare(Box<DeviceHost>),
    /// See [`Carrier::Mmio`].
    Mmio(MockDriver),
}

/// What a shell has to say, as the core said it.
fn reason(error: MmioError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

impl Side {
    pub(crate) fn new(carrier: Carrier, core: Box<dyn DeviceCore>, notifier: &MockNotifier) -> Self {
        match carrier {
            Carrier::Bare => Self::Bare(Box::new(DeviceHost::new(core, Box::new(notifier.clone())).unwrap())),
            Carrier::Mmio => {
                let device = MmioDevice::new("proof", core, Arc::new(Unobserved)).unwrap();
                Self::Mmio(MockDriver::new(Arc::new(device)))
            }
        }
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        match self {
            Self::Bare(host) => host.info().features,
            Self::Mmio(driver) => driver.device.info().features,
        }
    }

    /// Largest size of each queue.
    pub fn queue_sizes(&self) -> Vec<u16> {
        match self {
            // A bare core works with any size: the limit is the transport's to enforce.
            Self::Bare(host) => host.info().queue_sizes.iter().map(|_| MAX_RING_SIZE).collect(),
            Self::Mmio(driver) => driver.device.info().queue_sizes.clone(),
        }
    }

    /// The state of the device, which stands still afterwards if it has a thread of its own. Of a device that
    /// cannot be saved now it is a record that nobody takes; see [`Self::save_obstacle`].
    pub fn save(&mut self) -> Vec<u8> {
        match self {
            Self::Bare(host) => host.save(),
            Self::Mmio(driver) => {
                driver.device.pause();
                match driver.device.save() {
                    Ok(record) => record,
                    Err(MmioError::Obstacle(_)) => Vec::new(),
                    Err(error) => panic!("{error}: {:?}", error.source()),
                }
            }
        }
    }

    /// Why the device cannot be saved as it stands.
    pub fn save_obstacle(&self) -> Option<String> {
        match self {
            Self::Bare(host) => host.save_obstacle().map(|obstacle| obstacle.to_string()),
            Self::Mmio(driver) => driver.device.save().err().map(reason),
        }
    }

    /// Takes up saved state and goes on; queues that ran are started as a shell does.
    ///
    /// # Errors
    /// The record is refused; the device is as after a reset.
    pub fn restore(&mut self, record: &[u8]) -> Result<(), String> {
        match self {
            Self::Bare(host) => {
                let rings = host.restore(record).map_err(|error| error.to_string())?;
                for (queue, ring) in (0..).zip(rings) {
                    if let Some((layout, next_avail)) = ring {
                        // A layout that is refused stops that queue.
                        let _ = host.start_ring(RingStart { queue, layout, next_avail, kick: None });
                    }
                }
                Ok(())
            }
            Self::Mmio(driver) => {
                driver.device.pause();
                let outcome = driver.device.restore(record);
                driver.device.unpause();
                outcome.map_err(reason)
            }
        }
    }

    /// A new driver's memory.
    pub(crate) fn set_memory(&mut self, ram: &GuestRamHandle) {
        match self {
            Self::Bare(host) => host.set_memory(Arc::clone(ram)).unwrap(),
            Self::Mmio(driver) => driver.device.set_memory(Arc::clone(ram)).unwrap(),
        }
    }

    /// A new driver: these features, all queues.
    pub(crate) fn begin(&mut self, features: u64, queues: &[MockQueue]) {
        match self {
            Self::Bare(host) => {
                assert!(host.set_features(features), "the device refuses what it offered");
                for (queue, ring) in (0..).zip(queues) {
                    let layout = ring.layout();
                    host.start_ring(RingStart { queue, layout, next_avail: 0, kick: None }).unwrap();
                }
            }
            Self::Mmio(driver) => {
                assert!(driver.settle(features), "the device refuses what it offered");
                driver.run(queues);
                assert_eq!(driver.status() & RUNNING, RUNNING);
            }
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        match self {
            Self::Bare(host) => host.reset(),
            Self::Mmio(driver) => driver.set_status(0),
        }
    }

    /// The driver kicks.
    pub fn kick(&mut self, queue: u16) {
        match self {
            Self::Bare(host) => host.kick(queue),
            Self::Mmio(driver) => driver.kick(queue),
        }
    }

    /// Whether the device waits for a reset.
    pub fn broken(&self) -> bool {
        match self {
            Self::Bare(host) => host.fault().is_some(),
            Self::Mmio(driver) => driver.status() & NEEDS_RESET != 0,
        }
    }

    /// What broke it, as far as that is known here.
    pub fn fault(&self) -> String {
        match self {
            Self::Bare(host) => format!("{:?}", host.fault()),
            Self::Mmio(driver) => format!("status {:#x}", driver.status()),
        }
    }

    /// Lets the device work, or waits for it to have worked, at most so long. Whether it did anything.
    pub fn turn(&mut self, timeout_ms: u16) -> bool {
        match self {
            Self::Bare(host) => host.turn(timeout_ms.into()).unwrap(),
            Self::Mmio(driver) => driver.interrupted(Duration::from_millis(timeout_ms.into())).is_some(),
        }
    }

    /// Stands still.
    pub fn pause(&mut self) {
        match self {
            Self::Bare(host) => host.pause(),
            Self::Mmio(driver) => driver.device.pause(),
        }
    }

    /// Goes on.
    pub fn unpause(&mut self) {
        match self {
            Self::Bare(host) => host.unpause(),
            Self::Mmio(driver) => driver.device.unpause(),
        }
    }

    /// Length of the configuration space.
    pub fn config_len(&self) -> u32 {
        match self {
            Self::Bare(host) => host.info().config_len,
            Self::Mmio(driver) => driver.device.info().config_len,
        }
    }

    /// A piece of the configuration space.
    pub fn config(&self, offset: u32, len: u32) -> Vec<u8> {
        match self {
            Self::Bare(host) => host.config().get(offset, len).unwrap().to_vec(),
            Self::Mmio(driver) => driver.config(offset.into(), len as usize),
        }
    }

    /// The device alone.
    pub fn bare(&mut self) -> &mut DeviceHost {
        match self {
            Self::Bare(host) => host,
            Self::Mmio(_) => panic!("the device is behind a shell"),
        }
    }

    /// The driver of a device behind registers.
    pub fn driver(&self) -> &MockDriver {
        match self {
            Self::Bare(_) => panic!("the device has no registers"),
            Self::Mmio(driver) => driver,
        }
    }
}
