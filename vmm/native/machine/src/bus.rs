//! Who answers at which address. One bus for memory-mapped I/O, one for ports.

/// A device on a bus. Called on vCPU threads, several at a time.
pub trait BusDevice: Send + Sync {
    /// The guest reads at `offset` from the device's first address. `data` holds all-ones.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}
