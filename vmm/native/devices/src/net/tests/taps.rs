//! Real taps, in a network namespace of the test's own thread. Without the right to make one there is nothing
//! to test, and the tests say so.
#![allow(unsafe_code, reason = "tests")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Command;

use super::guest::{PLAIN, RX_DATA, config, frame, stopped};
use crate::net::Tap;
use crate::net::queue::*;

/// Runs `test` in a new network namespace with a tap `t0`, up, of `queues` queues.
fn with_tap(queues: usize, test: impl FnOnce(Vec<Tap>) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare takes a number; the namespace is this thread's, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("no right to make a network namespace: not tested");
            return;
        }
        let taps = match Tap::open("t0", queues) {
            Ok(taps) => taps,
            Err(error) => return eprintln!("no taps here ({error}): not tested"),
        };
        ip("link set t0 up");
        test(taps);
    });
    thread.join().unwrap();
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).status().unwrap();
    assert!(done.success(), "ip {line}");
}

/// Broadcasts one frame of `len` bytes out of the tap, towards the guest.
fn broadcast(len: usize) {
    // SAFETY: socket takes numbers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: socket returned it just now.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: the name is a literal with a terminator.
    let index = unsafe { libc::if_nametoindex(c"t0".as_ptr()) };
    // SAFETY: sockaddr_ll is plain data for which all-zero is a valid value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    let mut data = frame(7, len);
    data[..6].fill(0xff);
    // SAFETY: pointers and lengths are those of `data` and `to`.
    let sent = unsafe {
        libc::sendto(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            data.as_ptr().cast(),
            len,
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    assert_eq!(sent, len as isize, "{}", std::io::Error::last_os_error());
}

#[test]
fn real_tap_offers_offloads_and_moves_packets_both_ways() {
    with_tap(1, |taps| {
        let mut m = stopped(config(taps), vec![]);
        let offered = m.host.info().features;
        let wanted =
            VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_HOST_TSO6;
        assert_eq!(offered & wanted, wanted);
        assert!(m.host.set_features(offered));
        m.start_all();
        m.settle();
        let before = m.count("rx_packets");
        for n in 0..40 {
            m.post(RX_DATA + 4096 * n, 2000);
        }
        m.kick(0);
        broadcast(1000);
        m.settle();
        assert!(m.count("rx_packets") > before);
        m.send(PLAIN, &frame(1, 100));
        assert_eq!((m.count("tx_packets"), m.count("tx_errors")), (1, 0));
        // The guest may take back what it has accepted.
        let ask = m.host.info().queue_sizes.len() as u16 - 1;
        assert_eq!(m.ask(ask, 5, 0, &0u64.to_le_bytes()), 0);
    });
}

#[test]
fn tap_that_is_down_or_gone_neither_spins_nor_stays_dead() {
    with_tap(1, |taps| {
        let mut m = stopped(config(taps), vec![]);
        assert!(m.host.set_features(m.host.info().features));
        m.start_all();
        for n in 0..40 {
            m.post(RX_DATA + 4096 * n, 2000);
        }
        m.kick(0);
        ip("link set t0 down");
        m.settle();
        m.send(PLAIN, &frame(1, 100));
        m.settle();
        assert!(!m.host.turn(0).unwrap());
        assert_eq!(m.count("tx_errors"), 1);
        ip("link set t0 up");
        m.settle();
        let before = m.count("rx_packets");
        broadcast(200);
        m.send(PLAIN, &frame(1, 100));
        m.settle();
        assert!(m.count("rx_packets") > before);
        assert_eq!(m.count("tx_packets"), 1);
        ip("link delete t0");
        m.settle();
        m.send(PLAIN, &frame(1, 100));
        m.settle();
        assert!(!m.host.turn(0).unwrap(), "a tap that is gone is silent");
        assert_eq!(m.count("tx_errors"), 2);
        m.handle.set_taps(Tap::open("t0", 1).unwrap());
        ip("link set t0 up");
        m.settle();
        m.send(PLAIN, &frame(1, 100));
        let before = m.count("rx_packets");
        broadcast(200);
        m.settle();
        assert!(m.count("rx_packets") > before);
        assert_eq!(m.count("tx_packets"), 2);
    });
}

#[test]
fn queues_of_a_tap_are_the_hosts_only_while_they_are_served() {
    with_tap(3, |taps| {
        let mut m = stopped(config(taps), vec![]);
        assert!(m.host.set_features(m.host.info().features & !VIRTIO_NET_F_CTRL_VQ));
        let queues = |m: &mut super::guest::Machine, pairs: u16| {
            // However the host spreads them, every packet comes to a queue that is served.
            for number in 0..50u64 {
                broadcast(60 + number as usize);
                m.settle();
            }
            let used: Vec<u16> = (0..3).map(|pair| m.queues[2 * pair].used_idx()).collect();
            (used.iter().sum::<u16>(), used[usize::from(pairs)..].iter().sum::<u16>())
        };
        for pair in 0..3u64 {
            for n in 0..250 {
                m.queues[2 * pair as usize]
                    .offer(&[(RX_DATA + 2048 * (250 * pair + n), 2048, true)])
                    .unwrap();
            }
        }
        m.start(0, 0);
        let (all, elsewhere) = queues(&mut m, 1);
        assert!(all >= 50 && elsewhere == 0, "{all} {elsewhere}");
        m.start(2, 0);
        m.start(4, 0);
        let (more, _) = queues(&mut m, 1);
        assert!(more >= all + 50);
        m.host.stop_ring(2);
        m.host.stop_ring(4);
        let (most, _) = queues(&mut m, 1);
        assert!(most >= more + 50);
    });
}

#[test]
fn one_queue_of_a_tap_that_was_made_for_several_is_opened() {
    with_tap(2, |taps| {
        assert_eq!(Tap::open("t0", 1).unwrap().len(), 1);
        drop(taps);
    });
}

#[test]
fn descriptor_that_is_no_tap_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Tap::new(file.into()).is_err());
    assert!(Tap::open("a-name-that-is-too-long", 1).is_err());
}
