//! Saved state: hardly more than the kind. A guest that has mounted holds references to files of this host, which
//! mean nothing elsewhere; such a device cannot be saved (see `DeviceCore::save_obstacle`).
//!
//! So mappings are never saved: only a guest that has mounted has any. It will have found the window itself,
//! though, and goes on believing in it, so the device that takes over must have one of the same length.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"FS  ");
/// 2: the length of the window.
const VERSION: u32 = 2;

pub(super) fn save(mounted: bool, window_length: u64) -> Vec<u8> {
    let mut record = RecordWriter::new(KIND, VERSION);
    record.u8(u8::from(mounted)).u64(window_length).finish()
}

pub(super) fn restore(record: &[u8], window_length: u64) -> Result<(), RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let mounted = reader.flag("mounted")?;
    let saved_length = if reader.version() < 2 { 0 } else { reader.u64()? };
    reader.finish()?;
    if mounted {
        return Err(RecordError::Value("mounted: a mounted share cannot be restored"));
    }
    if saved_length != window_length {
        return Err(RecordError::Value("window length: this device's window is another"));
    }
    Ok(())
}
