//! Saved state: the context id, and the next host port so that a restored guest never meets an old one.
//! Connections are not saved: a guest that goes on gets a transport reset.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"VSCK");
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) guest_cid: u64,
    pub(super) next_port: u32,
}

pub(super) fn save(saved: Saved) -> Vec<u8> {
    RecordWriter::new(KIND, VERSION).u64(saved.guest_cid).u32(saved.next_port).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<Saved, RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let saved = Saved { guest_cid: reader.u64()?, next_port: reader.u32()? };
    reader.finish()?;
    Ok(saved)
}
