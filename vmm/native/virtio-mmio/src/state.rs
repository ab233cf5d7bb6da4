//! Saved state: the registers, the interrupt, and what is the device's own.

use std::sync::Arc;

use strato_virtio::RingStart;
use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

use crate::device::{MmioDevice, Registers, start_rings};
use crate::error::MmioError;
use crate::signals::Signals;

const KIND: u32 = kind(*b"MMIO");
const VERSION: u32 = 1;

impl MmioDevice {
    /// The state of the device, everything in flight having come to rest. To be called while the device is paused:
    /// what it does afterwards is not in the record.
    ///
    /// # Errors
    /// [`MmioError::Obstacle`] or [`MmioError::Lost`].
    pub fn save(&self) -> Result<Vec<u8>, MmioError> {
        let mut registers = self.registers();
        let signals = Arc::clone(&self.signals);
        // The interrupt as it is after the last request came to rest.
        let saved = self.worker.call(move |host| match host.save_obstacle() {
            Some(obstacle) => Err(MmioError::Obstacle(obstacle)),
            None => Ok((host.save(), signals.save())),
        });
        let (host, (interrupts, changes)) = saved??;
        self.note_fault(&mut registers);
        let mut record = RecordWriter::new(KIND, VERSION);
        record.bytes(&registers.transport.save()).u32(interrupts).u32(changes).bytes(&host);
        Ok(record.finish())
    }

    /// Takes over what [`Self::save`] returned, in guest memory that it has been given before. Queues that ran go
    /// on at once; pause the device before if they shall not. An interrupt that was pending is sent once more.
    ///
    /// # Errors
    /// The record is refused, or a queue does not lie in guest memory; the device is then as after a reset. Or it
    /// is lost.
    pub fn restore(&self, record: &[u8]) -> Result<(), MmioError> {
        let mut registers = self.registers();
        self.power_on(&mut registers);
        let outcome = self.take_over(&mut registers, record);
        if outcome.is_err() {
            self.power_on(&mut registers);
        }
        outcome
    }

    fn take_over(&self, registers: &mut Registers, record: &[u8]) -> Result<(), MmioError> {
        let mut reader = RecordReader::open(record, KIND, VERSION)?;
        registers.transport.restore(reader.bytes()?)?;
        let (interrupts, changes) = (reader.u32()?, reader.u32()?);
        if !Signals::possible(interrupts) {
            return Err(RecordError::Value("interrupt status").into());
        }
        let host_record = reader.bytes()?.to_vec();
        reader.finish()?;
        let features = registers.transport.settled_features();
        let queues = registers.transport.running_queues();
        let starts = queues.iter().map(|&(queue, layout)| self.ring_start(queue, layout, 0));
        let mut starts: Vec<RingStart> = starts.collect::<std::io::Result<_>>().map_err(MmioError::Host)?;
        let (active, live) = (registers.transport.active(), registers.transport.started());
        let signals = Arc::clone(&self.signals);
        self.worker.call(move |host| {
            let rings = host.restore(&host_record)?;
            if host.features() != features {
                return Err(RecordError::Value("features").into());
            }
            // Both halves tell of the same queues, or the record is not one that was saved.
            let ran = rings.iter().flatten().count();
            if active && ran != starts.len() {
                return Err(RecordError::Value("running queues").into());
            }
            for start in &mut starts {
                match rings.get(usize::from(start.queue)) {
                    Some(Some((layout, position))) if *layout == start.layout => start.next_avail = *position,
                    _ => return Err(RecordError::Value("queue layout").into()),
                }
            }
            signals.restore(interrupts, changes);
            if live {
                signals.go_live();
            }
            start_rings(host, starts).map_err(|fault| MmioError::Ring(fault.error))
        })?
    }
}
