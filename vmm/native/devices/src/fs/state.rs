//! Saved state: nothing but the kind. A guest that has mounted holds references to files of this host, which
//! mean nothing elsewhere; such a device cannot be saved (see `DeviceCore::save_obstacle`).

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"FS  ");
const VERSION: u32 = 1;

pub(super) fn save(mounted: bool) -> Vec<u8> {
    let mut record = RecordWriter::new(KIND, VERSION);
    record.u8(u8::from(mounted)).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<(), RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let mounted = reader.flag("mounted")?;
    reader.finish()?;
    if mounted { Err(RecordError::Value("mounted: a mounted share cannot be restored")) } else { Ok(()) }
}
