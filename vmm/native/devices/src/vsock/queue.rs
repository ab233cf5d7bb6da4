//! The packet header: 44 bytes before the data (virtio 1.2, 5.10.6).
//!
//! Crate virtio-vsock is not used: it wants header and data in at most two descriptors, and Linux sends
//! zero-copy data in many.

/// Length of a header in bytes.
pub(super) const HEADER_LEN: usize = 44;

/// Length of a header as an offset into a chain.
pub(super) const HEADER_OFFSET: u32 = 44;

/// Most data in one packet; what Linux sends at most (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
pub(super) const MAX_DATA: u32 = 64 * 1024;

/// The host's context id (virtio 1.2, 5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// Sockets of type SEQPACKET are offered (VIRTIO_VSOCK_F_SEQPACKET; virtio 1.2, 5.10.3). Streams always are.
pub(super) const F_SEQPACKET: u64 = 1 << 1;

/// Socket type: stream.
pub(super) const TYPE_STREAM: u16 = 1;
/// Socket type: messages in order.
pub(super) const TYPE_SEQPACKET: u16 = 2;

/// READ_WRITE flag of SEQPACKET: the packet's data ends a message (VIRTIO_VSOCK_SEQ_EOM). Its neighbour,
/// VIRTIO_VSOCK_SEQ_EOR, is the sender's MSG_EOR, which unix sockets do not carry.
pub(super) const SEQ_EOM: u32 = 1;

/// SHUTDOWN flag: the sender of the flag receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender of the flag sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketType {
    /// Bytes.
    Stream,
    /// Messages, each of which arrives as a whole.
    Seqpacket,
}

impl SocketType {
    pub(super) fn from_number(number: u16) -> Option<Self> {
        match number {
            TYPE_STREAM => Some(Self::Stream),
            TYPE_SEQPACKET => Some(Self::Seqpacket),
            _ => None,
        }
    }

    pub(super) fn number(self) -> u16 {
        match self {
            Self::Stream => TYPE_STREAM,
            Self::Seqpacket => TYPE_SEQPACKET,
        }
    }
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A connection is asked for.
    Request,
    /// It is accepted.
    Response,
    /// It is refused, or ends at once.
    Reset,
    /// One side closes a direction or both.
    Shutdown,
    /// Data.
    ReadWrite,
    /// The sender's window.
    CreditUpdate,
    /// The sender wants to know the receiver's window.
    CreditRequest,
    /// Not an operation of the specification.
    Unknown(u16),
}

impl Op {
    fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// A header, copied out of guest memory once or to be copied into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// Socket type.
    pub socket_type: u16,
    /// Operation.
    pub op: Op,
    /// Flags of the operation.
    pub flags: u32,
    /// The sender's receive window in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender's program has taken so far, modulo 2^32.
    pub fwd_cnt: u32,
}

fn field<const N: usize>(raw: &[u8; HEADER_LEN], offset: usize) -> [u8; N] {
    raw.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

impl Header {
    /// Any 44 bytes are a header; whether it makes sense is for others to say.
    pub fn parse(raw: &[u8; HEADER_LEN]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(raw, 0)),
            dst_cid: u64::from_le_bytes(field(raw, 8)),
            src_port: u32::from_le_bytes(field(raw, 16)),
            dst_port: u32::from_le_bytes(field(raw, 20)),
            len: u32::from_le_bytes(field(raw, 24)),
            socket_type: u16::from_le_bytes(field(raw, 28)),
            op: Op::from_number(u16::from_le_bytes(field(raw, 30))),
            flags: u32::from_le_bytes(field(raw, 32)),
            buf_alloc: u32::from_le_bytes(field(raw, 36)),
            fwd_cnt: u32::from_le_bytes(field(raw, 40)),
        }
    }

    /// The 44 bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.socket_type.to_le_bytes(),
            &self.op.number().to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut offset = 0;
        for bytes in fields {
            let end = offset + bytes.len();
            if let Some(to) = raw.get_mut(offset..end) {
                to.copy_from_slice(bytes);
            }
            offset = end;
        }
        raw
    }
}
