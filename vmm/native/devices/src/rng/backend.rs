//! Where random bytes come from.

use std::io;

/// A source of random bytes; a trait so that tests can make it fail.
pub trait Entropy: Send {
    /// Fills `data` with random bytes.
    ///
    /// # Errors
    /// The source has none; the guest gets an empty answer.
    fn fill(&mut self, data: &mut [u8]) -> io::Result<()>;
}

/// The host kernel's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&mut self, data: &mut [u8]) -> io::Result<()> {
        strato_virtio::random::fill_random(data)
    }
}
