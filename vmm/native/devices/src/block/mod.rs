//! The block device (virtio 1.2, section 5.2) on a raw file or block device. The format is never guessed:
//! byte n of the file is byte n of the disk.
//!
//! One thread for each device takes requests off its queues and hands them to an engine (io_uring, or a pool
//! of threads), which carries them out side by side; they are answered in the order in which they end. So a
//! slow disk holds up nothing but itself, and a slow request not even its own disk.

mod backend;
mod bounced;
mod buffers;
mod control;
mod device;
mod engine;
mod metrics;
mod queue;
mod request;
mod serve;
mod state;
#[cfg(test)]
mod tests;

pub use self::backend::CacheMode;
pub use self::control::BlockControl;
pub use self::device::{Block, BlockConfig};
pub use self::engine::EngineChoice;
pub use self::metrics::BlockMetrics;
