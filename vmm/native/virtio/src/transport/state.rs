//! Saved state of the registers. It is taken up by doing what a driver would have done, so that nothing is accepted
//! here that a live driver would be refused.

use super::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use super::{QueueSetup, Refused, RingPart, Transport};
use crate::record::{RecordError, RecordReader, RecordWriter, kind};
use crate::ring::RingLayout;

const KIND: u32 = kind(*b"VTRN");
const VERSION: u32 = 1;

impl Transport {
    /// All registers, as a record.
    pub fn save(&self) -> Vec<u8> {
        let mut record = RecordWriter::new(KIND, VERSION);
        record.u8(self.status).u64(self.driver_features);
        record.u32(self.device_features_page).u32(self.driver_features_page).u32(self.selected);
        record.u16(u16::try_from(self.queues.len()).unwrap_or(u16::MAX));
        for QueueSetup { layout, ready, .. } in &self.queues {
            record.u8(u8::from(*ready)).u16(layout.size);
            record.u64(layout.desc_table).u64(layout.avail_ring).u64(layout.used_ring);
        }
        record.finish()
    }

    /// Takes over what [`Self::save`] returned. Queues and features are the caller's to pass on to the device:
    /// [`Self::settled_features`], [`Self::running_queues`].
    ///
    /// # Errors
    /// The record is refused; the registers are then as after a reset.
    pub fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        self.reset();
        let outcome = self.replay(record);
        if outcome.is_err() {
            self.reset();
        }
        outcome
    }

    fn replay(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let mut reader = RecordReader::open(record, KIND, VERSION)?;
        let (status, features) = (reader.u8()?, reader.u64()?);
        let (device_page, driver_page, selected) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | DEVICE_NEEDS_RESET | FAILED;
        if status & !known != 0 {
            return Err(RecordError::Value("status"));
        }
        self.step(status & ACKNOWLEDGE)?;
        self.step(status & DRIVER)?;
        for (page, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            if value != 0 {
                self.select_driver_features(page);
                self.write_driver_features(value).map_err(|_| RecordError::Value("features"))?;
            }
        }
        self.step(status & FEATURES_OK)?;
        if usize::from(reader.u16()?) != self.queues.len() {
            return Err(RecordError::Value("number of queues"));
        }
        for (queue, max_size) in (0..).zip(self.queues.iter().map(|queue| queue.max_size).collect::<Vec<_>>())
        {
            let ready = reader.flag("ready")?;
            let layout = RingLayout {
                size: reader.u16()?,
                desc_table: reader.u64()?,
                avail_ring: reader.u64()?,
                used_ring: reader.u64()?,
            };
            if ready || layout != QueueSetup::new(max_size).layout {
                self.select_queue(queue);
                self.set_up(layout, ready).map_err(|_| RecordError::Value("queue"))?;
            }
        }
        reader.finish()?;
        self.step(status & DRIVER_OK)?;
        if status & DEVICE_NEEDS_RESET != 0 {
            self.needs_reset();
        }
        self.step(status & FAILED)?;
        self.select_device_features(device_page);
        self.select_driver_features(driver_page);
        self.select_queue(selected);
        Ok(())
    }

    /// The driver sets this bit, if it did.
    fn step(&mut self, bit: u8) -> Result<(), RecordError> {
        if bit == 0 {
            return Ok(());
        }
        // What it means for the device is the caller's business.
        let outcome = self.write_status(self.status | bit);
        // FEATURES_OK is accepted and stays clear if the features cannot be.
        if outcome.is_ok() && self.has(bit) { Ok(()) } else { Err(RecordError::Value("status")) }
    }

    fn set_up(&mut self, layout: RingLayout, ready: bool) -> Result<(), Refused> {
        self.write_queue_size(layout.size)?;
        for (part, address) in [
            (RingPart::Desc, layout.desc_table),
            (RingPart::Avail, layout.avail_ring),
            (RingPart::Used, layout.used_ring),
        ] {
            self.write_ring_address(part, false, address as u32)?;
            self.write_ring_address(part, true, (address >> 32) as u32)?;
        }
        self.write_queue_ready(ready)
    }
}
