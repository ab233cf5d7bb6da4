//! The control queue, configuration and saved state.

use strato_virtio::VIRTIO_F_VERSION_1;

use super::guest::{
    CONTROL_DATA, CONTROL_QUEUE, Cable, MAC, Machine, PLAIN, RX_DATA, config, frame, machine, stopped,
    with_pairs,
};
use crate::net::queue::*;

const CONTROL: u64 = VIRTIO_NET_F_CTRL_VQ
    | VIRTIO_NET_F_CTRL_RX
    | VIRTIO_NET_F_CTRL_RX_EXTRA
    | VIRTIO_NET_F_CTRL_VLAN
    | VIRTIO_NET_F_CTRL_MAC_ADDR
    | VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | VIRTIO_NET_F_GUEST_ANNOUNCE
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_MRG_RXBUF;

fn mac_table(unicast: u32, multicast: u32) -> Vec<u8> {
    let mut table = unicast.to_le_bytes().to_vec();
    table.extend(vec![2; 6 * unicast as usize]);
    table.extend(multicast.to_le_bytes());
    table.extend(vec![3; 6 * multicast as usize]);
    table
}

#[test]
fn configuration_tells_address_status_pairs_and_mtu() {
    let m = with_pairs(3, 0, |_| {});
    let mut expected = MAC.to_vec();
    expected.extend([1, 0, 3, 0]);
    expected.extend(1400u16.to_le_bytes());
    assert_eq!(m.host.config().get(0, 12).unwrap(), expected);
    assert_eq!(m.host.config().get(0, 13), None);
    assert_ne!(m.host.info().features & VIRTIO_NET_F_MQ, 0);
    assert_eq!(machine(0).host.info().features & VIRTIO_NET_F_MQ, 0);
}

#[test]
fn every_command_is_answered() {
    let mut m = machine(CONTROL);
    for mode in 0..6 {
        assert_eq!(m.ask(CONTROL_QUEUE, 0, mode, &[1]), 0);
        assert_eq!(m.ask(CONTROL_QUEUE, 0, mode, &[0]), 0);
    }
    assert_eq!(m.ask(CONTROL_QUEUE, 1, 0, &mac_table(0, 0)), 0);
    assert_eq!(m.ask(CONTROL_QUEUE, 1, 0, &mac_table(3, 70)), 0);
    assert_eq!(m.ask(CONTROL_QUEUE, 1, 1, &[2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(m.host.config().get(0, 6).unwrap(), [2, 3, 4, 5, 6, 7]);
    for vlan in [0u16, 4095] {
        assert_eq!(m.ask(CONTROL_QUEUE, 2, 0, &vlan.to_le_bytes()), 0);
        assert_eq!(m.ask(CONTROL_QUEUE, 2, 1, &vlan.to_le_bytes()), 0);
    }
    assert_eq!(m.ask(CONTROL_QUEUE, 5, 0, &VIRTIO_NET_F_GUEST_CSUM.to_le_bytes()), 0);
    assert_eq!(m.count("control_refused"), 0);
}

#[test]
fn wrong_commands_are_refused_and_change_nothing() {
    let mut m = machine(CONTROL);
    let mut short_table = mac_table(3, 3);
    short_table.pop();
    let mut long_table = mac_table(3, 3);
    long_table.push(0);
    let huge_table = u32::MAX.to_le_bytes();
    let refused: [(u8, u8, &[u8]); 22] = [
        (0, 0, &[]),
        (0, 0, &[2]),
        (0, 0, &[1, 1]),
        (0, 6, &[1]),
        (1, 0, &[]),
        (1, 0, &short_table),
        (1, 0, &long_table),
        (1, 0, &huge_table),
        (1, 0, &[0xaa, 0xaa, 0xaa, 0x2a, 1, 2, 3, 4, 5, 6]),
        (1, 1, &[1, 2, 3, 4, 5, 6]),
        (1, 1, &[2, 2, 3, 4, 5]),
        (1, 2, &[]),
        (2, 0, &4096u16.to_le_bytes()),
        (2, 2, &[0, 0]),
        (3, 0, &[1]),
        (3, 1, &[]),
        (4, 0, &[1, 0]), // multi-queue was not negotiated
        (4, 1, &[]),
        (5, 0, &VIRTIO_NET_F_GUEST_TSO6.to_le_bytes()),
        (5, 0, &[0; 7]),
        (6, 0, &[]),
        (255, 255, &[255; 64]),
    ];
    for (class, command, data) in refused {
        assert_eq!(m.ask(CONTROL_QUEUE, class, command, data), 1, "{class} {command} {data:?}");
    }
    assert_eq!(m.count("control_commands"), 0);
    assert_eq!(m.host.config().get(0, 6).unwrap(), MAC);
}

#[test]
fn command_without_room_for_an_answer_is_not_carried_out() {
    let mut m = machine(CONTROL);
    let driver = &mut m.queues[2];
    driver.write(CONTROL_DATA, &[1, 1, 2, 9, 9, 9, 9, 9]);
    driver.offer(&[(CONTROL_DATA, 8, false)]).unwrap();
    driver.offer(&[(CONTROL_DATA, 1, false), (CONTROL_DATA + 64, 1, true)]).unwrap();
    driver.offer(&[(CONTROL_DATA + 64, 1, true)]).unwrap();
    m.kick(CONTROL_QUEUE);
    assert_eq!(m.queues[2].used_idx(), 3);
    assert_eq!(m.queues[2].read(CONTROL_DATA + 64, 1), [1]);
    assert_eq!(m.host.config().get(0, 6).unwrap(), MAC);
}

#[test]
fn announcement_is_asked_for_until_it_is_acknowledged() {
    let mut m = machine(CONTROL | VIRTIO_NET_F_STATUS);
    m.handle.announce();
    m.settle();
    assert!(m.config_notified());
    assert_eq!(m.status(), 3);
    assert_eq!(m.ask(CONTROL_QUEUE, 3, 0, &[]), 0);
    assert_eq!(m.status(), 1);
    // A driver that cannot is not asked.
    let mut m = machine(0);
    m.handle.announce();
    m.settle();
    assert!(!m.config_notified());
}

#[test]
fn control_queue_is_where_the_negotiated_pairs_end() {
    let mut m = with_pairs(4, CONTROL | VIRTIO_NET_F_MQ, |_| {});
    assert_eq!(m.ask(8, 0, 0, &[1]), 0);
    let mut m = with_pairs(4, CONTROL, |_| {});
    assert_eq!(m.ask(2, 0, 0, &[1]), 0);
}

fn post_everywhere(m: &mut Machine, pairs: usize) {
    for pair in 0..pairs {
        for n in 0..20u64 {
            let at = RX_DATA + 2048 * (20 * pair as u64 + n);
            m.queues[2 * pair].offer(&[(at, 2048, true)]).unwrap();
        }
        m.kick(2 * pair as u16);
    }
}

fn used_of(m: &Machine, pairs: usize) -> Vec<u16> {
    (0..pairs).map(|pair| m.queues[2 * pair].used_idx()).collect()
}

#[test]
fn only_the_pairs_that_the_driver_asked_for_receive() {
    let mut m = with_pairs(3, CONTROL | VIRTIO_NET_F_MQ, |_| {});
    post_everywhere(&mut m, 3);
    let send = |m: &mut Machine| {
        for cable in &m.cables {
            cable.send(PLAIN, &frame(1, 60));
        }
        m.settle();
    };
    send(&mut m);
    assert_eq!(used_of(&m, 3), [1, 0, 0]);
    assert_eq!(m.ask(6, 4, 0, &[3, 0]), 0);
    assert_eq!(used_of(&m, 3), [1, 1, 1]);
    send(&mut m);
    assert_eq!(used_of(&m, 3), [2, 2, 2]);
    assert_eq!(m.ask(6, 4, 0, &[2, 0]), 0);
    send(&mut m);
    assert_eq!(used_of(&m, 3), [3, 3, 2]);
    for pairs in [0u16, 4, 65535] {
        assert_eq!(m.ask(6, 4, 0, &pairs.to_le_bytes()), 1);
    }
}

#[test]
fn pairs_whose_rings_run_receive_when_the_control_queue_is_somebody_elses() {
    let (cables, taps) = (0..2).map(|_| Cable::pair()).unzip();
    let mut m = stopped(config(taps), cables);
    let features = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MQ | VIRTIO_NET_F_MRG_RXBUF;
    assert!(m.host.set_features(features));
    (0..4).for_each(|queue| m.start(queue, 0));
    post_everywhere(&mut m, 2);
    for cable in &m.cables {
        cable.send(PLAIN, &frame(1, 60));
    }
    m.settle();
    assert_eq!(used_of(&m, 2), [1, 1]);
}

#[test]
fn saved_state_brings_back_what_the_driver_had_set() {
    let mut m = with_pairs(2, CONTROL | VIRTIO_NET_F_MQ, |_| {});
    assert_eq!(m.ask(4, 1, 1, &[2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(m.ask(4, 4, 0, &[2, 0]), 0);
    assert_eq!(m.ask(4, 5, 0, &VIRTIO_NET_F_GUEST_CSUM.to_le_bytes()), 0);
    m.handle.announce();
    post_everywhere(&mut m, 2);
    let saved = m.host.save();
    let (cables, taps) = (0..2).map(|_| Cable::pair()).unzip();
    let mut other = stopped(config(taps), cables);
    let rings = other.host.restore(&saved).unwrap();
    other.queues = m.queues;
    other.host.set_memory(m.ram).unwrap();
    for (queue, ring) in rings.into_iter().enumerate() {
        let (layout, position) = ring.unwrap();
        assert_eq!(layout, other.queues[queue].layout());
        other.start(queue as u16, position);
    }
    for cable in &other.cables {
        cable.send([1; 12], &frame(1, 60));
    }
    other.settle();
    assert_eq!(used_of(&other, 2), [1, 1]);
    assert_eq!(other.queues[0].read(RX_DATA, 1), [1], "checksums are still the guest's to make");
    assert_eq!(other.host.config().get(0, 6).unwrap(), [2, 3, 4, 5, 6, 7]);
    assert_eq!(other.status(), 3);
}

#[test]
fn saved_state_that_cannot_be_is_refused() {
    let mut m = with_pairs(2, CONTROL | VIRTIO_NET_F_MQ, |_| {});
    let saved = m.host.save();
    assert!(machine(0).host.restore(&saved).is_err(), "a device with fewer pairs");
    for at in 0..saved.len() {
        let mut bad = saved.clone();
        bad[at] ^= 0xff;
        // Refused or not, the device lives and has pairs that exist.
        let _ = m.host.restore(&bad);
        assert!(m.host.restore(&saved[..at]).is_err());
    }
    assert!(m.host.restore(&saved).is_ok());
}

#[test]
fn device_that_cannot_be_is_not_made() {
    use crate::net::Net;
    let taps = || vec![Cable::pair().1];
    assert!(Net::new(config(vec![])).is_err());
    for mac in [[1; 6], [255; 6]] {
        let mut config = config(taps());
        config.mac = mac;
        assert!(Net::new(config).is_err());
    }
    let mut config = config(taps());
    config.mtu = Some(67);
    assert!(Net::new(config).is_err());
}
