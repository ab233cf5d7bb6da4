//! Saved state: the capacity that the driver was told. No request is in flight at a save.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"BLK ");
const VERSION: u32 = 1;

pub(super) fn save(sectors: u64) -> Vec<u8> {
    RecordWriter::new(KIND, VERSION).u64(sectors).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<u64, RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let sectors = reader.u64()?;
    reader.finish()?;
    Ok(sectors)
}
