//! Saved state: the capacity that the driver was told, and the kind of cache it chose. No request is in
//! flight at a save.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"BLK ");
const VERSION: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) sectors: u64,
    /// What the driver wrote into the configuration, if it did.
    pub(super) writeback: Option<bool>,
}

pub(super) fn save(saved: Saved) -> Vec<u8> {
    let writeback = match saved.writeback {
        None => 0,
        Some(false) => 1,
        Some(true) => 2,
    };
    RecordWriter::new(KIND, VERSION).u64(saved.sectors).u8(writeback).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<Saved, RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let sectors = reader.u64()?;
    // Version 1 had no choice of cache.
    let writeback = match if reader.version() < 2 { 0 } else { reader.u8()? } {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return Err(RecordError::Value("kind of cache")),
    };
    reader.finish()?;
    Ok(Saved { sectors, writeback })
}
