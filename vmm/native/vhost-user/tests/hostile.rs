//! A front end that lies, byte by byte: the device refuses or drops it, and serves the next one.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use strato_virtio::mock::SeededRandom;
use support::{Backend, FrontEnd, memfd, region, rng};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const NEED_REPLY: u32 = 9;
const SET_MEM_TABLE: u32 = 5;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;

fn message(request: u32, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    [request, flags, size].iter().for_each(|field| raw.extend_from_slice(&field.to_ne_bytes()));
    raw.extend_from_slice(body);
    raw
}

fn say(connection: &UnixStream, raw: &[u8], fds: &[RawFd]) {
    // The device may have hung up by now, which is an answer too.
    let _ = connection.send_with_fds(&[raw], fds);
}

fn works(backend: &Backend) {
    let mut front_end = FrontEnd::connect(backend);
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn requests_of_every_kind_and_size_with_too_many_descriptors_or_none_are_survived() {
    const REQUESTS: u32 = 48;
    const SIZES: [u32; 8] = [0, 1, 4, 8, 12, 40, 4096, u32::MAX];
    let rounds = REQUESTS as usize * SIZES.len() * 3;
    let backend = rng(rounds + 1);
    let eventfd = EventFd::new(0).unwrap();
    let mut random = SeededRandom::new(1);
    for request in 0..REQUESTS {
        for size in SIZES {
            for fds in [0, 1, 40] {
                let connection = UnixStream::connect(&backend.path).unwrap();
                let mut body = vec![0; size.min(4096) as usize];
                if fds > 0 {
                    random.fill(&mut body);
                }
                // Everything agreed to first, so that more of the requests get through.
                let all = (1u64 << 63) - 1;
                say(&connection, &message(SET_PROTOCOL_FEATURES, 1, 8, &all.to_ne_bytes()), &[]);
                let raw = message(request, NEED_REPLY, size, &body);
                say(&connection, &raw, &vec![eventfd.as_raw_fd(); fds]);
                connection.shutdown(std::net::Shutdown::Write).unwrap();
                // Until the device has done with it.
                let _ = (&connection).read_to_end(&mut Vec::new());
            }
        }
    }
    works(&backend);
}

#[test]
fn noise_after_a_good_beginning_is_survived() {
    let backend = rng(201);
    let file = memfd(1 << 20);
    let eventfd = EventFd::new(0).unwrap();
    for seed in 0..200 {
        let mut random = SeededRandom::new(seed);
        let connection = UnixStream::connect(&backend.path).unwrap();
        for _ in 0..20 {
            let request = random.below(30) as u32;
            let size = [0, 8, 8, 12, 12, 20, 40, 40][random.below(8) as usize];
            let mut body = vec![0u8; size];
            for byte in &mut body {
                *byte = if random.below(3) == 0 { random.next_u64() as u8 } else { 0 };
            }
            let fds = match random.below(4) {
                0 => vec![file.as_raw_fd()],
                1 => vec![eventfd.as_raw_fd()],
                _ => Vec::new(),
            };
            say(&connection, &message(request, 1, size as u32, &body), &fds);
        }
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = (&connection).read_to_end(&mut Vec::new());
    }
    works(&backend);
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: pipe2() just made these descriptors, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

/// Asks, if the session is still there: a lie that the protocol crate finds in a message ends it.
fn goes_on_or_has_ended(mut front_end: FrontEnd) {
    if front_end.requests.get_features().is_ok() {
        front_end.ask();
        front_end.kick.write(1).unwrap();
        assert_eq!(front_end.answered(), 16);
    }
}

#[test]
fn memory_that_cannot_be_is_refused_and_the_old_one_stays() {
    let (pipe, _write) = pipe();
    let folder = File::open(std::env::temp_dir()).unwrap();
    let eventfd = EventFd::new(0).unwrap();
    let backend = rng(15);
    for number in 0..14 {
        let mut front_end = FrontEnd::connect(&backend);
        front_end.start(0);
        let good = region(&front_end.ram);
        let readonly = File::open(format!("/proc/self/fd/{}", good.mmap_handle)).unwrap();
        let lie = match number {
            0 => VhostUserMemoryRegionInfo { mmap_handle: pipe.as_raw_fd(), ..good },
            1 => VhostUserMemoryRegionInfo { mmap_handle: folder.as_raw_fd(), ..good },
            2 => VhostUserMemoryRegionInfo { mmap_handle: eventfd.as_raw_fd(), ..good },
            3 => VhostUserMemoryRegionInfo { mmap_handle: readonly.as_raw_fd(), ..good },
            4 => VhostUserMemoryRegionInfo { memory_size: 0, ..good },
            5 => VhostUserMemoryRegionInfo { memory_size: good.memory_size + 4096, ..good },
            6 => VhostUserMemoryRegionInfo { memory_size: 1 << 62, ..good },
            7 => VhostUserMemoryRegionInfo { memory_size: u64::MAX, ..good },
            8 => VhostUserMemoryRegionInfo { mmap_offset: 4096, ..good },
            9 => VhostUserMemoryRegionInfo { mmap_offset: u64::MAX - 4095, ..good },
            10 => VhostUserMemoryRegionInfo { mmap_offset: 1, memory_size: 4096, ..good },
            11 => VhostUserMemoryRegionInfo { guest_phys_addr: u64::MAX - 4095, ..good },
            12 => VhostUserMemoryRegionInfo { userspace_addr: u64::MAX - 4095, ..good },
            _ => VhostUserMemoryRegionInfo { mmap_offset: u64::MAX, memory_size: 4096, ..good },
        };
        assert!(front_end.requests.set_mem_table(&[lie]).is_err(), "lie {number} was believed");
        goes_on_or_has_ended(front_end);
    }
    works(&backend);
}

#[test]
fn memory_can_not_be_made_shorter_once_it_is_given() {
    let backend = rng(1);
    let file = {
        // SAFETY: the name is a literal with a terminator; the descriptor returned is new and ours.
        let file = unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), flags))
        };
        file.set_len(1 << 20).unwrap();
        file
    };
    let front_end = FrontEnd::connect(&backend);
    let given = VhostUserMemoryRegionInfo { mmap_handle: file.as_raw_fd(), ..region(&front_end.ram) };
    front_end.requests.set_mem_table(&[given]).unwrap();
    assert!(file.set_len(4096).is_err(), "the device would die of it");
}

#[test]
fn rings_outside_memory_are_refused_one_by_one() {
    let backend = rng(22);
    for part in 0..3 {
        for number in 0..7 {
            let mut front_end = FrontEnd::connect(&backend);
            let good = front_end.addresses();
            let end = good.desc_table_addr - front_end.queue.layout().desc_table + support::RAM as u64;
            let wrong = [0, 8, end, end - 16, u64::MAX, u64::MAX - 15, good.desc_table_addr | 1][number];
            let mut addresses = VringConfigData { ..good };
            match part {
                0 => addresses.desc_table_addr = wrong,
                1 => addresses.avail_ring_addr = wrong,
                _ => addresses.used_ring_addr = wrong,
            }
            let requests = &mut front_end.requests;
            requests.set_vring_num(0, 16).unwrap();
            // Refused when it is said, or when the ring starts.
            let started = requests
                .set_vring_addr(0, &addresses)
                .and_then(|()| requests.set_vring_kick(0, &front_end.kick))
                .and_then(|()| requests.set_vring_enable(0, true));
            assert!(started.is_err(), "{wrong:#x} as part {part}");
            if front_end.requests.get_features().is_ok() {
                front_end.start(0);
                goes_on_or_has_ended(front_end);
            }
        }
    }
    works(&backend);
}

/// Descriptors that are no eventfds, or eventfds whose reads and writes wait.
#[test]
fn lines_that_are_no_eventfds_do_not_hold_the_device_up() {
    let (read, write) = pipe();
    let file = memfd(4096);
    let socket = UnixStream::pair().unwrap();
    let waits = EventFd::new(0).unwrap();
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let fds = [read.as_raw_fd(), write.as_raw_fd(), file.as_raw_fd(), socket.0.as_raw_fd()];
    let borrowed = |fd: RawFd| {
        // SAFETY: dup() makes a descriptor of its own of one that is open here.
        unsafe { EventFd::from_raw_fd(libc::dup(fd)) }
    };
    let backend = rng(1);
    let mut front_end = FrontEnd::connect(&backend);
    for kick in fds.iter().copied().chain([waits.as_raw_fd()]) {
        for call in fds.iter().copied().chain([full.as_raw_fd()]) {
            front_end.set_up(0);
            front_end.requests.set_vring_call(0, &borrowed(call)).unwrap();
            // Some cannot be watched, and are refused.
            let _ = front_end.requests.set_vring_kick(0, &borrowed(kick));
            let _ = front_end.requests.set_vring_enable(0, true);
            front_end.ask();
            let _ = (&socket.1).write(&[1; 3]);
            front_end.requests.get_features().unwrap();
            front_end.requests.set_vring_enable(0, false).unwrap();
            front_end.requests.get_vring_base(0).unwrap();
            front_end.queue = strato_virtio::mock::MockQueue::new(&front_end.ram, 0x1000, 16).0;
        }
    }
    front_end.start(0);
    front_end.ask();
    front_end.kick.write(1).unwrap();
    assert_eq!(front_end.answered(), 16);
}

#[test]
fn channel_that_is_none_or_was_not_agreed_on_is_refused() {
    let backend = rng(4);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let request = message(SET_BACKEND_REQ_FD, NEED_REPLY, 0, &[]);
    // Not agreed on: no channel, and no answer, since answers were not agreed on either.
    let connection = UnixStream::connect(&backend.path).unwrap();
    say(&connection, &request, &[theirs.as_raw_fd()]);
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!((&connection).read(&mut [0; 20]).unwrap(), 0);
    // Without a descriptor, and with a body that it does not have: the conversation ends.
    for (size, fds) in [(0, vec![]), (8, vec![theirs.as_raw_fd()])] {
        let connection = UnixStream::connect(&backend.path).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        say(&connection, &message(SET_BACKEND_REQ_FD, NEED_REPLY, size, &vec![0; size as usize]), &fds);
        let _ = (&connection).read(&mut [0; 20]);
        assert!(matches!((&connection).read(&mut [0; 20]), Ok(0) | Err(_)));
    }
    drop((ours, theirs.as_fd()));
    works(&backend);
}

#[test]
fn memory_tables_that_do_not_fit_their_own_count_are_survived() {
    let backend = rng(7);
    let file = memfd(4096);
    for (count, regions) in [(0u32, 0), (0, 1), (1, 0), (2, 1), (33, 33), (u32::MAX, 1)] {
        let connection = UnixStream::connect(&backend.path).unwrap();
        let mut body = count.to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; 4]);
        body.resize(8 + 32 * regions, 0);
        let raw = message(SET_MEM_TABLE, NEED_REPLY, body.len() as u32, &body);
        say(&connection, &raw, &vec![file.as_raw_fd(); regions.clamp(1, 33)]);
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = (&connection).read_to_end(&mut Vec::new());
    }
    works(&backend);
}
