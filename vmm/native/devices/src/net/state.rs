//! Saved state: what the driver has changed. Packets are not part of it: one that is on its way may be lost,
//! as on any network.

use strato_virtio::record::{RecordError, RecordReader, RecordWriter, kind};

const KIND: u32 = kind(*b"NET ");
const VERSION: u32 = 1;

/// What a driver can change in a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) mac: [u8; 6],
    pub(super) offloads: u64,
    pub(super) pairs: u16,
    /// One bit for each receive mode that is on.
    pub(super) modes: u8,
    /// The guest was asked to announce itself and has not yet.
    pub(super) announce: bool,
}

pub(super) fn save(state: &State) -> Vec<u8> {
    let mut record = RecordWriter::new(KIND, VERSION);
    record.bytes(&state.mac).u64(state.offloads).u16(state.pairs);
    record.u8(state.modes).u8(u8::from(state.announce)).finish()
}

pub(super) fn restore(record: &[u8]) -> Result<State, RecordError> {
    let mut reader = RecordReader::open(record, KIND, VERSION)?;
    let state = State {
        mac: reader.bytes()?.try_into().map_err(|_| RecordError::Value("MAC address"))?,
        offloads: reader.u64()?,
        pairs: reader.u16()?,
        modes: reader.u8()?,
        announce: reader.flag("announce")?,
    };
    reader.finish()?;
    Ok(state)
}
