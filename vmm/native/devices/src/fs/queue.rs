//! What is in the buffers of a queue.

use strato_virtio::{Chain, ChainError, GuestRam};

use super::wire::{IN_HEADER_LEN, Opcode, WRITE_IN_LEN};

/// Longest request that is copied: a header, the largest value of an extended attribute and its name. The
/// data of a WRITE are not copied; longer requests of other kinds are cut off here and refused later.
const MAX_REQUEST: usize = 72 << 10;

/// What the worker decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Glance {
    pub(super) opcode: Option<Opcode>,
    /// Bytes of data that the request wants moved.
    pub(super) data_len: u32,
}

/// Copies a request out of its chain, each byte once.
///
/// # Errors
/// Guest memory that was there when the chain was checked is not there any more.
pub(super) fn load(ram: &GuestRam, chain: &Chain, request: &mut Vec<u8>) -> Result<Glance, ChainError> {
    let readable = chain.readable_len() as usize;
    let first = readable.min(IN_HEADER_LEN + WRITE_IN_LEN);
    request.clear();
    request.resize(first, 0);
    chain.read_at(ram, 0, request)?;
    let number = request.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let opcode = Opcode::from_number(number);
    let data_len = match opcode {
        Some(Opcode::Write) => u32::try_from(readable - first).unwrap_or(u32::MAX),
        Some(Opcode::Read) => chain.writable_len(),
        _ => 0,
    };
    if opcode != Some(Opcode::Write) && readable > first {
        request.resize(readable.min(MAX_REQUEST), 0);
        chain.read_at(ram, first as u32, request.get_mut(first..).unwrap_or_default())?;
    }
    Ok(Glance { opcode, data_len })
}
