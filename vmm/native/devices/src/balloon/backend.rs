//! How memory goes back to the host.

use std::io;

use strato_virtio::GuestRam;

/// Takes memory back; a trait so that tests can make it fail.
pub trait Discard: Send {
    /// Gives the whole pages of a range back; returns how many bytes that was.
    ///
    /// # Errors
    /// As [`strato_virtio::discard`].
    fn discard(&mut self, ram: &GuestRam, guest_addr: u64, len: u64) -> io::Result<u64>;
}

/// The host's kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDiscard;

impl Discard for HostDiscard {
    fn discard(&mut self, ram: &GuestRam, guest_addr: u64, len: u64) -> io::Result<u64> {
        strato_virtio::discard(ram, guest_addr, len)
    }
}
