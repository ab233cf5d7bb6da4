//! A guest that lies in every field. It may lose its own data; the device answers and lives.

use std::fs;

use super::super::backend::ROOT_NODE as ROOT;
use super::guest::{ANSWER, Body, Guest, HIPRIO, REQUEST, REQUESTS, Setup};

#[test]
fn requests_before_init_are_refused() {
    let mut guest = Guest::unmounted(Setup::default());
    for opcode in [1, 3, 14, 15, 16, 17, 27, 38, 99] {
        assert_eq!(guest.ask(opcode, ROOT, Body::new().bytes(&[0; 64])), Err(libc::EIO), "{opcode}");
    }
    guest.forget(ROOT, 1);
    guest.mount();
    assert!(guest.ask(17, ROOT, Body::new()).is_ok());
}

#[test]
fn a_second_init_begins_afresh() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.mount();
    assert_eq!(guest.write(handle, 0, b"x"), Err(libc::EBADF));
    assert!(guest.ask(3, node, Body::new().u32(0).u32(0).u64(0)).is_err());
    assert_eq!(guest.counter("mounts"), 2);
}

#[test]
fn wrong_versions_are_refused_and_newer_ones_told_ours() {
    let mut guest = Guest::unmounted(Setup::default());
    let init = |major, minor| Body::new().u32(major).u32(minor).bytes(&[0; 56]);
    assert_eq!(guest.ask(26, ROOT, init(7, 26)), Err(libc::EPROTO));
    assert_eq!(guest.ask(26, ROOT, init(6, 99)), Err(libc::EPROTO));
    let told = guest.ask(26, ROOT, init(8, 0)).unwrap();
    assert_eq!((told.u32(0), told.u32(4)), (7, 39));
    assert_eq!(guest.ask(17, ROOT, Body::new()), Err(libc::EIO));
}

#[test]
fn requests_without_a_header_come_back() {
    let mut guest = Guest::new();
    for len in [1, 4, 39] {
        assert_eq!(guest.send(&vec![0xff; len], 64), Some((libc::EIO, vec![])));
        assert_eq!(guest.send(&vec![0xff; len], 15), None);
    }
    // Nothing to read at all, and nothing to write at all.
    assert_eq!(guest.offer(REQUESTS, &[(ANSWER, 16, true)]), 16);
    assert_eq!(guest.offer(REQUESTS, &[(REQUEST, 40, false)]), 0);
    assert!(guest.host.fault().is_none());
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    let body = Guest::write_body(handle, 0, b"12345678", 0, 0).0;
    for claimed in [0, 1, 39, 41, 47, 49, 1000, u32::MAX] {
        let mut request = guest.header(16, 0, body.len());
        request[..4].copy_from_slice(&claimed.to_le_bytes());
        request.extend(&body);
        let (error, _) = guest.send(&request, 64).unwrap();
        assert!(error == libc::EIO || error == libc::EINVAL, "{claimed}: {error}");
    }
    // The size of a write is neither more nor less than its data.
    for size in [0u32, 7, 9, 1 << 20, u32::MAX] {
        let mut body = body.clone();
        body[16..20].copy_from_slice(&size.to_le_bytes());
        assert_eq!(guest.ask(16, 0, Body(body)), Err(libc::EINVAL));
    }
    assert_eq!(fs::read(guest.folder.0.join("file")).unwrap(), b"");
    for opcode in 1..60 {
        if [2, 36, 42, 26, 38].contains(&opcode) {
            continue;
        }
        // Nothing but a header: too short for all that want more.
        let bare = guest.ask(opcode, ROOT, Body::new());
        assert_eq!(bare.is_ok(), [5, 17, 50].contains(&opcode) && bare.is_ok(), "opcode {opcode}");
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut guest = Guest::new();
    fs::create_dir(guest.folder.0.join("dir")).unwrap();
    let dir = guest.node(ROOT, "dir");
    for name in ["", ".", "..", "/", "/etc", "a/b", "../x", "dir/.."] {
        assert_eq!(guest.lookup(dir, name), Err(libc::EINVAL), "{name}");
        assert_eq!(guest.create(dir, name, 0o600), Err(libc::EINVAL), "{name}");
        for (opcode, fields) in [(8, 16), (9, 8), (10, 0), (11, 0), (12, 8), (13, 8), (45, 16)] {
            let body = Body::new().bytes(&ROOT.to_le_bytes().repeat(2)[..fields]).name(name).name("x");
            assert_eq!(guest.ask(opcode, dir, body), Err(libc::EINVAL), "opcode {opcode}, {name}");
        }
    }
    assert_eq!(guest.lookup(dir, &"n".repeat(256)), Err(libc::ENAMETOOLONG));
    assert_eq!(guest.lookup(dir, &"n".repeat(255)).map(|entry| entry.u64(0)).unwrap_or(0), 0);
    let unterminated = Body::new().bytes(b"dir");
    assert_eq!(guest.ask(1, ROOT, unterminated), Err(libc::EINVAL));
}

#[test]
fn nodes_and_handles_that_are_not_the_guests_are_refused() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    for foreign in [0, node + 1, node + 1000, u64::MAX, 1 << 63] {
        assert!(guest.ask(3, foreign, Body::new().u32(0).u32(0).u64(0)).is_err());
        assert!(guest.lookup(foreign, "file").is_err());
        assert!(guest.open(foreign, 0).is_err());
        guest.forget(foreign, u64::MAX);
    }
    for foreign in [handle + 1, u64::MAX] {
        assert_eq!(guest.read(foreign, 0, 10), Err(libc::EBADF));
        assert_eq!(guest.write(foreign, 0, b"x"), Err(libc::EBADF));
        assert!(guest.release(foreign).is_err());
        assert!(guest.ask(28, ROOT, Guest::read_body(foreign, 0, 100)).is_err());
    }
    // A file's handle is no directory's.
    assert!(guest.ask(28, ROOT, Guest::read_body(handle, 0, 100)).is_err());
    assert_eq!(guest.read(handle, u64::MAX, 10), Err(libc::EINVAL));
    assert!(guest.read(handle, i64::MAX as u64, 10).is_err_and(|error| error == libc::EINVAL));
    assert_eq!(guest.write(handle, u64::MAX - 1, b"xy"), Err(libc::EINVAL));
    guest.forget(node, u64::MAX);
    guest.forget(ROOT, u64::MAX);
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn answers_without_room_are_refused_before_anything_happens() {
    let mut guest = Guest::new();
    let create = Body::new().u32(libc::O_RDWR as u32).u32(0o600).u32(0).u32(0).name("file");
    for room in [0, 1, 15, 16, 143, 159] {
        let mut request = guest.header(35, ROOT, create.0.len());
        request.extend(&create.0);
        let answer = guest.send(&request, room.max(1));
        assert_eq!(answer, (room >= 16).then_some((libc::EIO, vec![])), "room {room}");
    }
    assert_eq!(fs::read_dir(&guest.folder.0).unwrap().count(), 0);
    // Less data than asked for, as much as there is room for.
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.write(handle, 0, b"0123456789").unwrap();
    let body = Guest::read_body(handle, 0, 10);
    assert_eq!(guest.ask_with_room(15, 0, body.clone(), 20).unwrap().0, b"0123");
    assert_eq!(guest.ask_with_room(15, 0, body, 16).unwrap().0, b"");
    std::os::unix::fs::symlink("long target", guest.folder.0.join("link")).unwrap();
    let link = guest.node(ROOT, "link");
    assert_eq!(guest.ask_with_room(5, link, Body::new(), 20), Err(libc::EIO));
}

#[test]
fn sizes_beyond_all_bounds_are_cut_down() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.write(handle, 0, b"short").unwrap();
    let body = Guest::read_body(handle, 0, u32::MAX);
    assert_eq!(guest.ask_with_room(15, 0, body, 2 << 20).unwrap().0, b"short");
    let handle = guest.ask(27, ROOT, Body::new().u32(0).u32(0)).unwrap().u64(0);
    let body = Guest::read_body(handle, 0, u32::MAX);
    assert_eq!(guest.ask_with_room(28, ROOT, body, 2 << 20).unwrap().names(false).len(), 3);
    let body = Body::new().u32(u32::MAX).u32(0).name("user.none");
    assert_eq!(guest.ask_with_room(22, node, body, 2 << 20), Err(libc::ENODATA));
    let body = Body::new().u32(70_000).u32(0).u32(0).u32(0).name("user.long").bytes(&[1; 70_000]);
    assert!([Err(libc::E2BIG), Err(libc::EIO)].contains(&guest.ask(21, node, body)));
    let body = Body::new().u32(u32::MAX).u32(0).u32(0).u32(0).name("user.long").bytes(&[1; 10]);
    assert!(guest.ask(21, node, body).is_err());
}

#[test]
fn batch_forget_with_more_counts_than_entries_ends_quietly() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "file", 0o600).unwrap();
    for count in [0, 1, 2, u32::MAX] {
        let body = Body::new().u32(count).u32(0).u64(node).u64(0);
        let mut request = guest.header(42, 0, body.0.len());
        request.extend(&body.0);
        guest.queues[0].write(REQUEST, &request);
        assert_eq!(guest.offer(HIPRIO, &[(REQUEST, request.len() as u32, false)]), 0);
    }
    let body = Body::new().u32(2).u32(0).u64(node).u64(1).u64(77).u64(1);
    let mut request = guest.header(42, 0, body.0.len());
    request.extend(&body.0);
    assert_eq!(guest.send(&request, 64), None);
    assert!(guest.ask(3, node, Body::new().u32(0).u32(0).u64(0)).is_err());
}

#[test]
fn extensions_of_unknown_kind_or_length_are_refused() {
    let mut guest = Guest::new();
    let mkdir = |guest: &mut Guest, extension: &[u8], units: u16, name: &str| {
        let body = Body::new().u32(0o755).u32(0).name(name).bytes(extension);
        let mut request = guest.header(9, ROOT, body.0.len());
        request[36..38].copy_from_slice(&units.to_le_bytes());
        request.extend(&body.0);
        guest.send(&request, 4096).unwrap().0
    };
    let group = Body::new().u32(16).u32(32).u32(1).u32(0).0;
    assert_eq!(mkdir(&mut guest, &group, 2, "good"), 0);
    let none = Body::new().u32(16).u32(32).u32(0).u32(0).0;
    assert_eq!(mkdir(&mut guest, &none, 2, "none"), 0);
    let security = Body::new().u32(16).u32(1).u32(0).u32(0).0;
    assert_eq!(mkdir(&mut guest, &security, 2, "bad"), libc::EINVAL);
    let many = Body::new().u32(16).u32(32).u32(9).u32(0).0;
    assert_eq!(mkdir(&mut guest, &many, 2, "bad"), libc::EINVAL);
    for size in [0u32, 7, 17, u32::MAX] {
        let wrong = Body::new().u32(size).u32(32).u32(1).u32(0).0;
        assert_eq!(mkdir(&mut guest, &wrong, 2, "bad"), libc::EINVAL, "{size}");
    }
    assert_eq!(mkdir(&mut guest, &[], u16::MAX, "bad"), libc::EINVAL);
    assert!(!guest.folder.0.join("bad").exists());
}

#[test]
fn the_same_unique_twice_is_two_requests() {
    let mut guest = Guest::new();
    let body = Body::new().name("none");
    let mut request = guest.header(1, ROOT, body.0.len());
    request.extend(&body.0);
    assert_eq!(
        guest.send(&request, 4096).map(|answer| answer.0),
        guest.send(&request, 4096).map(|answer| answer.0)
    );
}

#[test]
fn requests_on_the_wrong_queue_are_answered_there() {
    let mut guest = Guest::new();
    let request = guest.header(17, ROOT, 0);
    guest.queues[0].write(REQUEST, &request);
    assert_eq!(guest.offer(HIPRIO, &[(REQUEST, 40, false), (ANSWER, 4096, true)]), 96);
    let (node, _) = guest.create(ROOT, "file", 0o600).unwrap();
    let mut request = guest.header(2, node, 8);
    request.extend(1u64.to_le_bytes());
    assert_eq!(guest.send(&request, 64), None);
}
