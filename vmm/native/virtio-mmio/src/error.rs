//! Why a device behind this shell cannot be given memory, saved or restored.

use std::fmt;
use std::io;

use strato_virtio::record::RecordError;
use strato_virtio::{RingError, SaveObstacle, WorkerError};

/// What the owner of a device may be answered. Drivers are answered by registers.
#[derive(Debug)]
pub enum MmioError {
    /// The device's thread has ended.
    Lost(WorkerError),
    /// The device holds what means nothing elsewhere.
    Obstacle(SaveObstacle),
    /// Saved state was refused; the device is as after a reset.
    Record(RecordError),
    /// A queue does not lie in guest memory; the device needs a reset.
    Ring(RingError),
    /// The host has no descriptors left.
    Host(io::Error),
}

impl fmt::Display for MmioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost(_) => "Device is lost",
            Self::Obstacle(_) => "Device cannot be saved now",
            Self::Record(_) => "Saved state of a device was refused",
            Self::Ring(_) => "Queue of a running device does not lie in guest memory",
            Self::Host(_) => "Device cannot be restored on this host",
        })
    }
}

impl std::error::Error for MmioError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lost(error) => Some(error),
            Self::Obstacle(error) => Some(error),
            Self::Record(error) => Some(error),
            Self::Ring(error) => Some(error),
            Self::Host(error) => Some(error),
        }
    }
}

impl From<WorkerError> for MmioError {
    fn from(error: WorkerError) -> Self {
        Self::Lost(error)
    }
}

impl From<RecordError> for MmioError {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}
