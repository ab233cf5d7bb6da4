//! One request: fill the writable part of a chain.

use strato_virtio::{Chain, ChainError, RunningRing};

use super::backend::Entropy;

/// Most bytes given for one request. A guest that asks for more gets this much, which the specification
/// allows; without a cap one request could keep the device busy for seconds.
pub(super) const MAX_REQUEST: u32 = 64 * 1024;

const CHUNK: usize = 4096;

/// How many bytes the request will get.
pub(super) fn request_len(chain: &Chain) -> u32 {
    chain.writable_len().min(MAX_REQUEST)
}

/// Fills the first `len` bytes; returns how many were filled before the source failed.
pub(super) fn fill(
    ring: &RunningRing<'_>,
    chain: &Chain,
    len: u32,
    source: &mut dyn Entropy,
) -> Result<u32, ChainError> {
    let mut chunk = [0; CHUNK];
    let mut offset = 0;
    while offset < len {
        let now = usize::try_from(len - offset).unwrap_or(CHUNK).min(CHUNK);
        let data = chunk.get_mut(..now).unwrap_or_default();
        if source.fill(data).is_err() {
            break;
        }
        ring.write(chain, offset, data)?;
        offset += u32::try_from(now).unwrap_or(len);
    }
    Ok(offset)
}
