//! Saved state: what was asked of the guest, and what it says it has given. Its statistics come anew.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"BALN");
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    /// In pages of 4 KiB, like the other.
    pub(super) target: u32,
    pub(super) actual: u32,
}

pub(super) fn save(saved: Saved) -> Vec<u8> {
    RecordWriter::new(KIND, VERSION).u32(saved.target).u32(saved.actual).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<Saved, RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let saved = Saved { target: reader.u32()?, actual: reader.u32()? };
    reader.finish()?;
    Ok(saved)
}
