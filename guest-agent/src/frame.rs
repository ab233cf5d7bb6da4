//! Length-prefixed frames of the hello and of a stream's id: u32 big-endian length, then that many bytes.

use std::io;

use crate::descriptor::Descriptor;

/// Longest frame of the contract, in bytes.
pub const MAX_FRAME: usize = 4096;

/// The frame around `payload`; None when it is too long.
pub fn encode(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > MAX_FRAME {
        return None;
    }
    let length = u32::try_from(payload.len()).ok()?;
    let mut frame = Vec::with_capacity(4 + payload.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    Some(frame)
}

/// The length that a header announces; None when the contract forbids it.
pub fn payload_length(header: [u8; 4]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(header)).ok()?;
    (length <= MAX_FRAME).then_some(length)
}

pub async fn read(connection: &Descriptor) -> io::Result<Vec<u8>> {
    let mut header = [0; 4];
    connection.read_exact(&mut header).await?;
    let length = payload_length(header).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("Frame header {header:02x?} is too long"),
        )
    })?;
    let mut payload = vec![0; length];
    connection.read_exact(&mut payload).await?;
    Ok(payload)
}

pub async fn write(connection: &Descriptor, payload: &[u8]) -> io::Result<()> {
    let frame = encode(payload).ok_or(io::ErrorKind::InvalidInput)?;
    connection.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encode_puts_the_length_first() {
        assert_eq!(encode(b"ab").as_deref(), Some(&b"\0\0\0\x02ab"[..]));
        assert_eq!(encode(b"").as_deref(), Some(&b"\0\0\0\0"[..]));
        assert_eq!(encode(&[0; MAX_FRAME + 1]), None);
    }

    #[test]
    fn payload_length_refuses_what_the_contract_forbids() {
        assert_eq!(payload_length([0, 0, 0, 0]), Some(0));
        assert_eq!(payload_length([0, 0, 16, 0]), Some(4096));
        assert_eq!(payload_length([0, 0, 16, 1]), None);
        assert_eq!(payload_length(*b"GET "), None);
    }
}
