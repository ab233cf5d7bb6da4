//! The control port's connections: ttrpc requests, and nothing else.
//!
//! The ttrpc server would read what a broken peer sends as lengths and skip it in silence. So the header of every
//! frame is looked at on its way, and a connection that carries anything but requests ends with a line in the log.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::console::RateLimit;
use crate::descriptor::Descriptor;
use crate::vsock;

/// ttrpc's frame header (PROTOCOL.md of containerd/ttrpc): length and stream id in network order, type, flags.
const HEADER: usize = 10;
const TYPE_REQUEST: u8 = 1;
/// ttrpc's limit for the data of one frame.
const MAX_LENGTH: u32 = 4 << 20;

static REFUSALS: RateLimit = RateLimit::new(5, Duration::from_secs(10));

/// The connections of the control port as the stream that the ttrpc server wants.
pub struct Incoming(pub Descriptor);

impl Stream for Incoming {
    type Item = io::Result<Guarded>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.0.poll_when_readable(cx, vsock::accept_now));
        Poll::Ready(Some(accepted.and_then(Descriptor::new).map(Guarded::new)))
    }
}

/// A connection whose incoming bytes are checked.
pub struct Guarded {
    connection: Descriptor,
    frames: Frames,
}

impl Guarded {
    fn new(connection: Descriptor) -> Self {
        Self {
            connection,
            frames: Frames::default(),
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(cx, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.frames.pass(new).map_err(|reason| {
            REFUSALS.warn(|| format!("Control connection closed: {reason}"));
            io::Error::new(io::ErrorKind::InvalidData, reason)
        }))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

/// Where in a sequence of frames a connection is.
#[derive(Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Bytes of the present frame's data that are still to come.
    data: usize,
}

impl Frames {
    /// Takes note of bytes that have arrived; an error says what is wrong with them.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let skipped = self.data.min(bytes.len());
            self.data -= skipped;
            bytes = &bytes[skipped..];
            let count = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have == HEADER {
                self.have = 0;
                self.data = check(self.header)?;
            }
        }
        Ok(())
    }
}

/// The length of the data that follows a header.
fn check(header: [u8; HEADER]) -> Result<usize, String> {
    let [l0, l1, l2, l3, .., low, kind, _] = header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if kind != TYPE_REQUEST || low % 2 == 0 {
        return Err(format!("{header:02x?} is no header of a ttrpc request"));
    }
    usize::try_from(length)
        .ok()
        .filter(|_| length <= MAX_LENGTH)
        .ok_or_else(|| format!("a request of {length} bytes is announced"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(stream: u8, data: &[u8]) -> Vec<u8> {
        let length = u8::try_from(data.len()).expect("a short request");
        let mut frame = vec![0, 0, 0, length, 0, 0, 0, stream, TYPE_REQUEST, 0];
        frame.extend_from_slice(data);
        frame
    }

    #[test]
    fn pass_takes_requests_however_they_are_cut() {
        let bytes = [request(1, b"abc"), request(3, b""), request(5, &[0xff; 40])].concat();
        for size in 1..=bytes.len() {
            let mut frames = Frames::default();
            for part in bytes.chunks(size) {
                assert_eq!(frames.pass(part), Ok(()), "in parts of {size}");
            }
            assert_eq!((frames.have, frames.data), (0, 0));
        }
    }

    #[test]
    fn pass_refuses_what_is_no_request() {
        let text = b"GET / HTTP/1.1\r\n";
        let mut answer = request(1, b"");
        answer[8] = 2;
        for bytes in [&text[..], &[0xff; 64], &answer, &request(2, b"")] {
            assert!(Frames::default().pass(bytes).is_err(), "{bytes:02x?}");
        }
    }

    #[test]
    fn pass_refuses_a_request_beyond_the_limit() {
        let mut frame = request(1, b"");
        frame[..4].copy_from_slice(&(MAX_LENGTH + 1).to_be_bytes());
        let refusal = Frames::default().pass(&frame);
        assert!(refusal.is_err_and(|reason| reason.contains("4194305 bytes")));
    }

    #[test]
    fn pass_finds_garbage_behind_a_good_request() {
        let mut frames = Frames::default();
        assert_eq!(frames.pass(&request(1, b"abc")), Ok(()));
        assert!(frames.pass(b"garbage, and enough of it").is_err());
    }
}
