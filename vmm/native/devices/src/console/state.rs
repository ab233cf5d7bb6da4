//! Saved state: what the driver has said of each port, and the size. What waits for the host is the host's and stays
//! behind.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"CONS");
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SavedPort {
    /// The driver has set it up.
    pub(super) ready: bool,
    /// A program of the guest has it open.
    pub(super) guest_open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) size: (u16, u16),
    pub(super) ports: Vec<SavedPort>,
}

pub(super) fn save(saved: &Saved) -> Vec<u8> {
    let mut record = RecordWriter::new(KIND, VERSION);
    record.u16(saved.size.0).u16(saved.size.1);
    record.u16(u16::try_from(saved.ports.len()).unwrap_or(u16::MAX));
    for port in &saved.ports {
        record.u8(u8::from(port.ready)).u8(u8::from(port.guest_open));
    }
    record.finish()
}

pub(super) fn restore(record: &[u8]) -> Result<Saved, RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let size = (reader.u16()?, reader.u16()?);
    let mut ports = Vec::new();
    for _ in 0..reader.u16()? {
        // Bounded by the length of the record: the reader fails at its end.
        ports.push(SavedPort { ready: reader.flag("ready")?, guest_open: reader.flag("guest open")? });
    }
    reader.finish()?;
    Ok(Saved { size, ports })
}
