//! What is in the buffers, of copies alone: Miri can run these.

use strato_virtio::mock::SeededRandom;

use crate::net::queue::*;

const EVERYTHING: u64 = u64::MAX;
const NEEDS_CSUM: u8 = 1;
const ECN: u8 = 0x80;
const TCP4: u8 = 1;
const UDP: u8 = 3;
const TCP6: u8 = 4;
const UDP_L4: u8 = 5;

/// A header with a checksum at 34 + 16 of the frame and segments of 1000 bytes.
fn header(flags: u8, gso: u8) -> [u8; HEADER_LEN] {
    [flags, gso, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0xff, 0xff]
}

#[test]
fn headers_pass_if_they_fit_the_frame_and_the_features() {
    let passes = |flags, gso, frame_len, features| {
        let checked = checked_header(&header(flags, gso), frame_len, features)?;
        Some((checked[0], checked[1]))
    };
    assert_eq!(checked_header(&header(0, 0), 60, 0), Some([0; HEADER_LEN]), "nothing of it was asked for");
    let checked = checked_header(&header(NEEDS_CSUM | 0xfe, TCP4), 3000, EVERYTHING);
    assert_eq!(checked, Some([NEEDS_CSUM, TCP4, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0]));
    // Frames that are none.
    for (frame_len, good) in [(13, false), (14, true), (65_553, true), (65_554, false)] {
        assert_eq!(passes(0, 0, frame_len, 0).is_some(), good, "{frame_len}");
    }
    // The sum is two bytes long, and not in the Ethernet header.
    assert_eq!(passes(NEEDS_CSUM, 0, 52, VIRTIO_NET_F_CSUM), Some((NEEDS_CSUM, 0)));
    assert_eq!(passes(NEEDS_CSUM, 0, 51, VIRTIO_NET_F_CSUM), None);
    assert_eq!(passes(NEEDS_CSUM, 0, 52, !VIRTIO_NET_F_CSUM), None);
    let in_ethernet = [NEEDS_CSUM, 0, 0, 0, 0, 0, 13, 0, 16, 0, 0, 0];
    assert_eq!(checked_header(&in_ethernet, 60, EVERYTHING), None);
    for (gso, feature) in [
        (TCP4, VIRTIO_NET_F_HOST_TSO4),
        (TCP6, VIRTIO_NET_F_HOST_TSO6),
        (UDP, VIRTIO_NET_F_HOST_UFO),
        (UDP_L4, VIRTIO_NET_F_HOST_USO),
    ] {
        let needed = feature | VIRTIO_NET_F_CSUM;
        assert_eq!(passes(NEEDS_CSUM, gso, 3000, needed), Some((NEEDS_CSUM, gso)));
        assert_eq!(passes(NEEDS_CSUM, gso, 3000, !feature), None);
        assert_eq!(passes(0, gso, 3000, EVERYTHING), None, "without a checksum");
        assert_eq!(passes(NEEDS_CSUM, gso, 53, EVERYTHING), None, "headers longer than the frame");
        // Congestion is TCP's.
        let tcp = gso == TCP4 || gso == TCP6;
        assert_eq!(passes(NEEDS_CSUM, gso | ECN, 3000, EVERYTHING).is_some(), tcp);
        assert_eq!(passes(NEEDS_CSUM, gso | ECN, 3000, !VIRTIO_NET_F_HOST_ECN), None);
    }
    assert_eq!(passes(NEEDS_CSUM, 2, 3000, EVERYTHING), None, "no such kind");
    let without_size = [NEEDS_CSUM, TCP4, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    assert_eq!(checked_header(&without_size, 3000, EVERYTHING), None);
}

#[test]
fn random_headers_never_panic_and_what_passes_points_into_the_frame() {
    let mut random = SeededRandom::new(5);
    for _ in 0..if cfg!(miri) { 300 } else { 100_000 } {
        let mut raw = header(NEEDS_CSUM, [0, TCP4, UDP, TCP6, UDP_L4][random.below(5) as usize]);
        for _ in 0..random.below(4) {
            raw[random.below(HEADER_LEN as u64) as usize] = random.next_u64() as u8;
        }
        let frame_len = random.below(70_000) as usize;
        let Some(checked) = checked_header(&raw, frame_len, random.next_u64() | 0xffff) else { continue };
        let word = |at: usize| usize::from(u16::from_le_bytes([checked[at], checked[at + 1]]));
        assert!(checked[0] & !NEEDS_CSUM == 0 && word(10) == 0);
        assert!(checked[0] == 0 || word(6) + word(8) + 2 <= frame_len);
        assert!(checked[1] == 0 || word(2) <= frame_len && word(4) > 0);
    }
}

/// As the device has it: a copy out of so many bytes, if they are there.
fn parse(bytes: &[u8]) -> Option<Command> {
    parse_command(bytes.len() as u32, |offset, data| {
        let offset = offset as usize;
        let found = bytes.get(offset..).and_then(|rest| rest.get(..data.len()));
        found.map(|found| data.copy_from_slice(found)).is_some()
    })
}

#[test]
fn commands_are_those_of_the_specification_and_nothing_longer_or_shorter() {
    let good: [(&[u8], Command); 9] = [
        (&[0, 0, 1], Command::ReceiveMode { mode: 0, on: true }),
        (&[0, 5, 0], Command::ReceiveMode { mode: 5, on: false }),
        (&[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0], Command::MacTable),
        (&[1, 1, 2, 0, 0, 0, 0, 9], Command::SetMac([2, 0, 0, 0, 0, 9])),
        (&[2, 0, 0xff, 0x0f], Command::Vlan),
        (&[2, 1, 0, 0], Command::Vlan),
        (&[3, 0], Command::AnnounceAck),
        (&[4, 0, 1, 2], Command::SetPairs(0x201)),
        (&[5, 0, 1, 2, 3, 4, 5, 6, 7, 8], Command::GuestOffloads(0x0807_0605_0403_0201)),
    ];
    for (bytes, command) in good {
        assert_eq!(parse(bytes), Some(command));
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None, "{command:?} cut short");
        assert_eq!(parse(&[bytes, &[0]].concat()), None, "{command:?} and more");
    }
    let bad: [&[u8]; 9] = [
        &[],
        &[0, 6, 1],
        &[0, 0, 2],
        &[1, 1, 3, 0, 0, 0, 0, 9],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        &[1, 0, 0xab, 0xaa, 0xaa, 0x2a, 0, 0, 0, 0],
        &[2, 0, 0, 0x10],
        &[4, 1, 1, 0],
        &[6, 0],
    ];
    for bytes in bad {
        assert_eq!(parse(bytes), None, "{bytes:?}");
    }
}

#[test]
fn random_commands_never_panic() {
    let mut random = SeededRandom::new(6);
    for _ in 0..if cfg!(miri) { 300 } else { 100_000 } {
        let mut bytes = vec![0; random.below(40) as usize];
        random.fill(&mut bytes);
        for (at, most) in [(0, 7), (1, 7), (2, 4), (3, 2), (4, 2), (5, 2)] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte %= most;
            }
        }
        // A length that is a lie, too: as if the guest had changed its chain.
        let len = random.below(50) as u32;
        let _ = parse_command(len, |offset, data| offset as usize + data.len() <= bytes.len());
        let _ = parse(&bytes);
    }
}
