//! Saved state: nothing but the kind. Random bytes are never saved, and the rate limit starts afresh.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"RNG ");
const VERSION: u32 = 1;

pub(super) fn save() -> Vec<u8> {
    RecordWriter::new(KIND, VERSION).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<(), RecordError> {
    RecordReader::open(record, KIND, VERSION)?.finish()
}
