//! What is in the buffers: the virtio-net header before each packet, and the commands of the control queue.
//! Pure functions over copies.

use super::backend::offload;

/// Length of the header in virtio 1.x (5.1.6), whatever was negotiated.
pub(super) const HEADER_LEN: usize = 12;
/// Longest packet with its header: what virtio asks drivers to have room for (1.2, 5.1.6.3.1), plus a VLAN tag.
pub(super) const MAX_PACKET: usize = HEADER_LEN + 65_562;
/// Destination, source, type.
const ETHERNET_LEN: usize = 14;
/// The largest IP packet in a tagged frame.
const MAX_FRAME: usize = 65_535 + ETHERNET_LEN + 4;

/// Offset of `num_buffers` in the header.
pub(super) const NUM_BUFFERS_AT: u32 = 10;

/// Feature bits (virtio 1.2, 5.1.3).
pub(super) const VIRTIO_NET_F_CSUM: u64 = 1 << 0;
pub(super) const VIRTIO_NET_F_GUEST_CSUM: u64 = 1 << 1;
pub(super) const VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub(super) const VIRTIO_NET_F_MTU: u64 = 1 << 3;
pub(super) const VIRTIO_NET_F_MAC: u64 = 1 << 5;
pub(super) const VIRTIO_NET_F_GUEST_TSO4: u64 = 1 << 7;
pub(super) const VIRTIO_NET_F_GUEST_TSO6: u64 = 1 << 8;
pub(super) const VIRTIO_NET_F_GUEST_ECN: u64 = 1 << 9;
pub(super) const VIRTIO_NET_F_GUEST_UFO: u64 = 1 << 10;
pub(super) const VIRTIO_NET_F_HOST_TSO4: u64 = 1 << 11;
pub(super) const VIRTIO_NET_F_HOST_TSO6: u64 = 1 << 12;
pub(super) const VIRTIO_NET_F_HOST_ECN: u64 = 1 << 13;
pub(super) const VIRTIO_NET_F_HOST_UFO: u64 = 1 << 14;
pub(super) const VIRTIO_NET_F_MRG_RXBUF: u64 = 1 << 15;
pub(super) const VIRTIO_NET_F_STATUS: u64 = 1 << 16;
pub(super) const VIRTIO_NET_F_CTRL_VQ: u64 = 1 << 17;
pub(super) const VIRTIO_NET_F_CTRL_RX: u64 = 1 << 18;
pub(super) const VIRTIO_NET_F_CTRL_VLAN: u64 = 1 << 19;
pub(super) const VIRTIO_NET_F_CTRL_RX_EXTRA: u64 = 1 << 20;
pub(super) const VIRTIO_NET_F_GUEST_ANNOUNCE: u64 = 1 << 21;
pub(super) const VIRTIO_NET_F_MQ: u64 = 1 << 22;
pub(super) const VIRTIO_NET_F_CTRL_MAC_ADDR: u64 = 1 << 23;
pub(super) const VIRTIO_NET_F_GUEST_USO4: u64 = 1 << 54;
pub(super) const VIRTIO_NET_F_GUEST_USO6: u64 = 1 << 55;
pub(super) const VIRTIO_NET_F_HOST_USO: u64 = 1 << 56;

/// Which offload of the tap each feature of the guest's receive side is.
const GUEST_OFFLOADS: [(u64, u32); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, offload::CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, offload::TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, offload::TSO6),
    (VIRTIO_NET_F_GUEST_ECN, offload::TSO_ECN),
    (VIRTIO_NET_F_GUEST_UFO, offload::UFO),
    (VIRTIO_NET_F_GUEST_USO4, offload::USO4),
    (VIRTIO_NET_F_GUEST_USO6, offload::USO6),
];

/// The guest offloads among `features`.
pub(super) fn guest_offloads(features: u64) -> u64 {
    GUEST_OFFLOADS.iter().map(|(feature, _)| features & feature).sum()
}

/// The features that a tap with `known` offloads can serve, both directions.
pub(super) fn offload_features(known: u32) -> u64 {
    let guest: u64 =
        GUEST_OFFLOADS.iter().filter(|(_, flag)| known & flag != 0).map(|(feature, _)| feature).sum();
    let host = [
        (offload::CSUM, VIRTIO_NET_F_CSUM),
        (offload::TSO4, VIRTIO_NET_F_HOST_TSO4),
        (offload::TSO6, VIRTIO_NET_F_HOST_TSO6),
        (offload::TSO_ECN, VIRTIO_NET_F_HOST_ECN),
        (offload::UFO, VIRTIO_NET_F_HOST_UFO),
        (offload::USO4, VIRTIO_NET_F_HOST_USO),
    ];
    guest | host.iter().filter(|(flag, _)| known & flag != 0).map(|(_, feature)| feature).sum::<u64>()
}

/// What to tell the tap for guest offloads. Without checksums there is nothing else either (5.1.3.1).
pub(super) fn tap_offloads(offloads: u64) -> u32 {
    if offloads & VIRTIO_NET_F_GUEST_CSUM == 0 {
        return 0;
    }
    let wanted: u32 =
        GUEST_OFFLOADS.iter().filter(|(feature, _)| offloads & feature != 0).map(|(_, flag)| flag).sum();
    // What Linux takes only together (drivers/net/tun.c, set_offload).
    let ecn = if wanted & (offload::TSO4 | offload::TSO6) == 0 { offload::TSO_ECN } else { 0 };
    let uso = offload::USO4 | offload::USO6;
    wanted & !ecn & if wanted & uso == uso { !0 } else { !uso }
}

const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// Checks the header of a packet of the guest with a frame of `frame_len` bytes, and returns the header that
/// the tap gets: nothing in it that was not checked. `None`: the packet is dropped.
pub(super) fn checked_header(
    header: &[u8; HEADER_LEN],
    frame_len: usize,
    features: u64,
) -> Option<[u8; HEADER_LEN]> {
    let &[flags, gso, hdr_len_0, hdr_len_1, gso_size_0, gso_size_1, start_0, start_1, offset_0, offset_1, ..] =
        header;
    if !(ETHERNET_LEN..=MAX_FRAME).contains(&frame_len) {
        return None;
    }
    let mut checked = [0; HEADER_LEN];
    let [
        to_flags,
        to_gso,
        to_len_0,
        to_len_1,
        to_size_0,
        to_size_1,
        to_start_0,
        to_start_1,
        to_offset_0,
        to_offset_1,
        ..,
    ] = &mut checked;
    // Flag bits that the device does not know are ignored (5.1.6.2.2).
    if flags & NEEDS_CSUM != 0 {
        let start = usize::from(u16::from_le_bytes([start_0, start_1]));
        let offset = usize::from(u16::from_le_bytes([offset_0, offset_1]));
        // The sum is two bytes long.
        let inside = start >= ETHERNET_LEN && start + offset + 2 <= frame_len;
        if features & VIRTIO_NET_F_CSUM == 0 || !inside {
            return None;
        }
        *to_flags = NEEDS_CSUM;
        (*to_start_0, *to_start_1, *to_offset_0, *to_offset_1) = (start_0, start_1, offset_0, offset_1);
    }
    if gso == 0 {
        return Some(checked);
    }
    let (kind, ecn) = (gso & !GSO_ECN, gso & GSO_ECN != 0);
    let needed = match kind {
        1 => VIRTIO_NET_F_HOST_TSO4,
        3 if !ecn => VIRTIO_NET_F_HOST_UFO,
        4 => VIRTIO_NET_F_HOST_TSO6,
        5 if !ecn => VIRTIO_NET_F_HOST_USO,
        _ => return None,
    };
    let needed = needed | if ecn { VIRTIO_NET_F_HOST_ECN } else { 0 };
    let hdr_len = usize::from(u16::from_le_bytes([hdr_len_0, hdr_len_1]));
    let sized = gso_size_0 | gso_size_1 != 0 && hdr_len <= frame_len;
    if features & needed != needed || flags & NEEDS_CSUM == 0 || !sized {
        return None;
    }
    *to_gso = gso;
    (*to_len_0, *to_len_1, *to_size_0, *to_size_1) = (hdr_len_0, hdr_len_1, gso_size_0, gso_size_1);
    Some(checked)
}

/// A command of the control queue, checked as far as its bytes alone tell (virtio 1.2, 5.1.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// One of the receive modes, by its number, on or off.
    ReceiveMode {
        mode: u8,
        on: bool,
    },
    /// Tables of unicast and multicast addresses.
    MacTable,
    SetMac([u8; 6]),
    Vlan,
    AnnounceAck,
    SetPairs(u16),
    GuestOffloads(u64),
}

/// Number of receive modes: promisc, allmulti, alluni, nomulti, nouni, nobcast.
const RECEIVE_MODES: u8 = 6;
/// VLAN identifiers end here.
const VLANS: u16 = 4096;

/// Reads a command of `len` bytes; `copy` copies from an offset and says whether it could.
pub(super) fn parse_command(len: u32, copy: impl Fn(u32, &mut [u8]) -> bool) -> Option<Command> {
    let mut code = [0; 2];
    if !copy(0, &mut code) {
        return None;
    }
    let data = Data { len: len.checked_sub(2)?, copy };
    match code {
        [0, mode @ 0..RECEIVE_MODES] => match data.exactly::<1>()? {
            [on @ 0..=1] => Some(Command::ReceiveMode { mode, on: on == 1 }),
            _ => None,
        },
        [1, 0] => data.is_mac_table().then_some(Command::MacTable),
        [1, 1] => data.exactly().filter(|[first, ..]: &[u8; 6]| first & 1 == 0).map(Command::SetMac),
        [2, 0 | 1] => data.exactly().filter(|id| u16::from_le_bytes(*id) < VLANS).map(|_| Command::Vlan),
        [3, 0] => (data.len == 0).then_some(Command::AnnounceAck),
        [4, 0] => data.exactly().map(|pairs| Command::SetPairs(u16::from_le_bytes(pairs))),
        [5, 0] => data.exactly().map(|bits| Command::GuestOffloads(u64::from_le_bytes(bits))),
        _ => None,
    }
}

struct Data<Copy> {
    len: u32,
    copy: Copy,
}

impl<Copy: Fn(u32, &mut [u8]) -> bool> Data<Copy> {
    fn at<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut field = [0; N];
        (self.copy)(offset.checked_add(2)?, &mut field).then_some(field)
    }

    fn exactly<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len as usize == N { self.at(0) } else { None }
    }

    /// Two tables, each a number and so many addresses, and nothing after them.
    fn is_mac_table(&self) -> bool {
        let mut offset = 0u32;
        for _ in 0..2 {
            let Some(count) = self.at(offset).map(u32::from_le_bytes) else { return false };
            let end = count.checked_mul(6).and_then(|bytes| bytes.checked_add(offset)?.checked_add(4));
            match end {
                Some(end) if end <= self.len => offset = end,
                _ => return false,
            }
        }
        offset == self.len
    }
}
