//! What is in the buffers: control messages (virtio 1.2, 5.3.6.2) and bytes.

use strato_virtio::{Chain, ChainError, RunningRing};

pub(super) const CONTROL_LEN: usize = 8;

/// Bytes moved at a time.
pub(super) const CHUNK: usize = 4096;

/// Events of control messages.
pub(super) const DEVICE_READY: u16 = 0;
pub(super) const DEVICE_ADD: u16 = 1;
pub(super) const PORT_READY: u16 = 3;
pub(super) const CONSOLE_PORT: u16 = 4;
pub(super) const RESIZE: u16 = 5;
pub(super) const PORT_OPEN: u16 = 6;
pub(super) const PORT_NAME: u16 = 7;

/// One control message, apart from what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: u16,
    pub(super) value: u16,
}

impl Message {
    /// Reads one from the guest; nothing if the chain is too short for one.
    pub(super) fn read(ring: &RunningRing<'_>, chain: &Chain) -> Result<Option<Self>, ChainError> {
        if (chain.readable_len() as usize) < CONTROL_LEN {
            return Ok(None);
        }
        let mut raw = [0; CONTROL_LEN];
        ring.read(chain, 0, &mut raw)?;
        Ok(Some(Self::parse(raw)))
    }

    fn parse([a, b, c, d, e, f, g, h]: [u8; CONTROL_LEN]) -> Self {
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// The bytes for the guest, with what follows.
    pub(super) fn bytes(self, tail: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CONTROL_LEN + tail.len());
        bytes.extend(self.port.to_le_bytes());
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(tail);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use strato_virtio::mock::SeededRandom;

    use super::*;

    #[test]
    fn control_messages_have_their_fields_where_the_specification_says() {
        let raw = [4, 3, 2, 1, PORT_OPEN as u8, 0, 0xcd, 0xab];
        let message = Message { port: 0x0102_0304, event: PORT_OPEN, value: 0xabcd };
        assert_eq!(Message::parse(raw), message);
        assert_eq!(message.bytes(b"tail"), [&raw[..], b"tail"].concat());
        let mut random = SeededRandom::new(1);
        for _ in 0..100 {
            let mut raw = [0; CONTROL_LEN];
            random.fill(&mut raw);
            assert_eq!(Message::parse(raw).bytes(&[]), raw);
        }
    }
}
