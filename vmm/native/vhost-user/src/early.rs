//! SET_VRING_ENABLE before SET_FEATURES.
//!
//! QEMU's network front end enables its rings before it passes on which features the driver accepted
//! (vhost_net_start in hw/net/vhost_net.c, up to QEMU 10 at least), and never again. Crate `vhost` takes that
//! message only after the features and would end the session. Until they have come, this looks at each message
//! before the crate does and answers that one itself.
#![expect(unsafe_code, reason = "a system call")]

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandler};

/// Header: request, flags, size of the body; 32 bits each, in the host's order.
const HEADER_LEN: usize = 12;
/// Index and number, 32 bits each.
const STATE_LEN: usize = 8;

const SET_FEATURES: u32 = 2;
const SET_VRING_ENABLE: u32 = 18;

/// Of the header's flags: the protocol's version, reply, and that one is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The time of a connection before its features are set.
pub(crate) struct Early {
    stream: UnixStream,
    over: bool,
}

impl Early {
    pub(crate) fn new(stream: &UnixStream) -> io::Result<Self> {
        Ok(Self { stream: stream.try_clone()?, over: false })
    }

    /// Waits for the next message and carries it out if it is an early SET_VRING_ENABLE; otherwise it is left
    /// where it is, and the answer is false.
    ///
    /// # Errors
    /// The device refused it. A connection that fails is left for whoever reads it next to find out.
    pub(crate) fn carry_out(&mut self, device: &impl VhostUserBackendReqHandler) -> Result<bool> {
        if self.over {
            return Ok(false);
        }
        let Some([request, flags, size]) = self.peek() else { return Ok(false) };
        self.over = request == SET_FEATURES;
        if request != SET_VRING_ENABLE || size as usize != STATE_LEN {
            return Ok(false);
        }
        let mut message = [0; HEADER_LEN + STATE_LEN];
        self.stream.read_exact(&mut message).map_err(Error::ReqHandlerError)?;
        let outcome = match words::<5>(&message) {
            Some([_, _, _, index, enable @ 0..=1]) => device.set_vring_enable(index, enable == 1),
            _ => Err(Error::InvalidParam),
        };
        if flags & NEED_REPLY != 0 {
            self.answer(outcome.is_ok());
        }
        outcome.map(|()| true)
    }

    fn peek(&self) -> Option<[u32; 3]> {
        let mut header = [0u8; HEADER_LEN];
        let flags = libc::MSG_PEEK | libc::MSG_WAITALL;
        // SAFETY: pointer and length are those of `header`. Descriptors that come with the message stay with it.
        let got =
            unsafe { libc::recv(self.stream.as_raw_fd(), header.as_mut_ptr().cast(), header.len(), flags) };
        if usize::try_from(got) == Ok(header.len()) { words(&header) } else { None }
    }

    fn answer(&mut self, success: bool) {
        let words = [SET_VRING_ENABLE, VERSION | REPLY, 8, u32::from(!success), 0];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // A front end that is gone is noticed at the next message.
        let _ = self.stream.write_all(&message);
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().ok()?);
    }
    Some(words)
}
