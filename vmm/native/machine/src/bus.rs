//! Who answers at which address. One bus for memory-mapped I/O, one for ports.
//!
//! A bus is filled while the machine is built and never changes afterwards, so vCPUs look things up side by side
//! and without a lock. What comes and goes while the guest runs is behind a device that stays ([`crate::slot`]).

use std::sync::Arc;

use strato_plumbing::{Failure, Result};

/// A device on a bus. Called on vCPU threads, several at a time.
pub trait BusDevice: Send + Sync {
    /// The guest reads at `offset` from the device's first address. `data` holds all-ones.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Range {
    first: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// The devices of one address space, in the order of their addresses.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// Puts a device at `len` addresses from `base` on.
    ///
    /// # Errors
    /// The range is empty, wraps, or is another's in part.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<()> {
        let last = len.checked_sub(1).and_then(|len| base.checked_add(len));
        let last = last.ok_or_else(|| {
            Failure::refused(format!("Device at {base:#x} cannot have {len:#x} addresses: change the plan"))
        })?;
        let place = self.ranges.partition_point(|range| range.last < base);
        if let Some(other) = self.ranges.get(place).filter(|other| other.first <= last) {
            let (from, to) = (other.first, other.last);
            return Err(Failure::new(
                format!("Device at {base:#x}-{last:#x} lies over the one at {from:#x}-{to:#x}"),
                libc::EEXIST,
            ));
        }
        self.ranges.insert(place, Range { first: base, last, device });
        Ok(())
    }

    /// The device that has all of `len` addresses from `addr` on, and where they lie in it.
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        let range = self.ranges.get(self.ranges.partition_point(|range| range.last < addr))?;
        let offset = addr.checked_sub(range.first)?;
        (last <= range.last).then_some((range.device.as_ref(), offset))
    }

    /// The guest reads. False: nobody is there, or not at all of these addresses; the guest sees all-ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let found = self.find(addr, data.len());
        found.map(|(device, offset)| device.read(offset, data)).is_some()
    }

    /// The guest writes. False: nobody is there, or not at all of these addresses, and nothing has happened.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let found = self.find(addr, data.len());
        found.map(|(device, offset)| device.write(offset, data)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers with its number and remembers what was written where.
    struct Named(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Named {
        fn new(number: u8) -> Arc<Self> {
            Arc::new(Self(number, Mutex::default()))
        }
    }

    impl BusDevice for Named {
        fn read(&self, offset: u64, data: &mut [u8]) {
            assert!(data.iter().all(|byte| *byte == 0xff), "all-ones before the device is asked");
            data.fill(self.0 + offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn read(bus: &Bus, addr: u64, len: usize) -> (bool, Vec<u8>) {
        let mut data = vec![0; len];
        (bus.read(addr, &mut data), data)
    }

    #[test]
    fn accesses_reach_the_device_that_has_all_of_the_addresses() {
        let mut bus = Bus::default();
        let (low, high) = (Named::new(0x10), Named::new(0x20));
        // Inserted out of order, side by side.
        bus.insert(0x1008, 8, high.clone()).unwrap();
        bus.insert(0x1000, 8, low.clone()).unwrap();
        for len in 1..=8 {
            assert_eq!(read(&bus, 0x1000, len), (true, vec![0x10; len]));
            assert_eq!(read(&bus, 0x1010 - len as u64, len), (true, vec![0x28 - len as u8; len]));
            assert!(bus.write(0x1000, &vec![1; len]));
        }
        assert_eq!(low.1.lock().unwrap().len(), 8);
        assert_eq!(high.1.lock().unwrap().len(), 0);
    }

    #[test]
    fn accesses_between_devices_across_them_and_at_the_end_of_the_world_reach_nobody() {
        let mut bus = Bus::default();
        let device = Named::new(0);
        assert_eq!(read(&bus, 0, 4), (false, vec![0xff; 4]));
        bus.insert(0x1000, 8, device.clone()).unwrap();
        bus.insert(0x1008, 8, device.clone()).unwrap();
        bus.insert(u64::MAX - 7, 8, device.clone()).unwrap();
        for addr in [0xfff, 0x1007, 0x100f, 0x1010, u64::MAX - 8, u64::MAX] {
            assert_eq!(read(&bus, addr, 2), (false, vec![0xff; 2]), "{addr:#x}");
            assert!(!bus.write(addr, &[0; 2]));
        }
        assert!(!bus.write(0x1000, &[]));
        assert_eq!(read(&bus, u64::MAX, 1), (true, vec![7]));
        assert_eq!(device.1.lock().unwrap().len(), 0);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x100, Named::new(0)).unwrap();
        for (base, len) in [(0x1000, 1), (0x10ff, 1), (0xfff, 2), (0x10ff, 2), (0, 0x2000), (0x1010, 0x10)] {
            let failure = bus.insert(base, len, Named::new(1)).unwrap_err();
            assert_eq!(failure.errno(), libc::EEXIST, "{base:#x} {len:#x}");
        }
        assert!(bus.insert(0x2000, 0, Named::new(1)).is_err());
        assert!(bus.insert(u64::MAX, 2, Named::new(1)).is_err());
        bus.insert(0x1100, 1, Named::new(1)).unwrap();
        bus.insert(0xfff, 1, Named::new(1)).unwrap();
    }
}
