//! Every operation, as an honest guest uses it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::super::backend::{CachePolicy, ROOT_NODE as ROOT};
use super::guest::{Body, Guest, Payload, Setup, is_root};

/// Offset of `attr` in struct fuse_entry_out, and of fields in struct fuse_attr.
const ENTRY_ATTR: usize = 40;
const ATTR_SIZE: usize = 8;
const ATTR_MODE: usize = 60;
const ATTR_NLINK: usize = 64;
const ATTR_UID: usize = 68;
const ATTR_GID: usize = 72;

fn getattr(guest: &mut Guest, node: u64) -> Payload {
    let payload = guest.ask(3, node, Body::new().u32(0).u32(0).u64(0)).unwrap();
    Payload(payload.0[16..].to_vec())
}

fn setattr_body(valid: u32, size: u64, mode: u32, owner: (u32, u32), mtime: u64) -> Body {
    let body = Body::new().u32(valid).u32(0).u64(0).u64(size).u64(0).u64(0).u64(mtime).u64(0);
    body.u32(0).u32(5).u32(0).u32(mode).u32(0).u32(owner.0).u32(owner.1).u32(0)
}

#[test]
fn mounting_negotiates_what_both_sides_can() {
    let mut guest = Guest::unmounted(Setup::default());
    let answer = guest.mount();
    assert_eq!((answer.u32(0), answer.u32(4), answer.u32(8)), (7, 39, 1 << 17));
    assert_eq!(answer.u32(20), 1 << 20, "max_write");
    assert_eq!(answer.u32(28) & 0xffff, 256, "max_pages");
    let flags = u64::from(answer.u32(12)) | u64::from(answer.u32(32)) << 32;
    for (bit, expected) in
        [(0, true), (1, false), (10, false), (12, true), (13, true), (16, false), (26, false)]
    {
        assert_eq!(flags >> bit & 1 != 0, expected, "INIT flag {bit}");
    }
    assert_eq!(guest.counter("mounts"), 1);
}

#[test]
fn names_are_looked_up_and_forgotten() {
    let mut guest = Guest::new();
    fs::write(guest.folder.0.join("file"), "12345").unwrap();
    let entry = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(entry.u64(ENTRY_ATTR + ATTR_SIZE), 5);
    assert_eq!((entry.u64(16), entry.u32(32)), (1, 0), "a second, for names");
    let node = entry.u64(0);
    assert_eq!(guest.node(ROOT, "file"), node);
    guest.forget(node, 1);
    assert_eq!(getattr(&mut guest, node).u64(ATTR_SIZE), 5);
    guest.forget(node, 1);
    let gone = guest.ask(3, node, Body::new().u32(0).u32(0).u64(0));
    assert!(gone.is_err());
}

#[test]
fn missing_names_are_remembered_if_the_policy_lets_them() {
    let mut guest = Guest::cached(CachePolicy::None);
    assert_eq!(guest.lookup(ROOT, "none"), Err(libc::ENOENT));
    let mut guest = Guest::cached(CachePolicy::Auto);
    match guest.lookup(ROOT, "none") {
        Ok(entry) => assert_eq!(entry.u64(0), 0),
        Err(error) => assert_eq!(error, libc::ENOENT),
    }
}

#[test]
fn without_a_cache_names_are_asked_for_and_bring_their_attributes() {
    let mut guest = Guest::cached(CachePolicy::None);
    let (node, _) = guest.create(ROOT, "file", 0o600).unwrap();
    let entry = guest.lookup(ROOT, "file").unwrap();
    assert_eq!((entry.u64(16), entry.u32(32)), (0, 0), "the name");
    assert_eq!((entry.u64(24), entry.u32(36)), (0, 1_000_000), "the attributes");
    let attributes_of = |guest: &mut Guest, node| {
        let answer = guest.ask(3, node, Body::new().u32(0).u32(0).u64(0)).unwrap();
        (answer.u64(0), answer.u32(8))
    };
    assert_eq!(attributes_of(&mut guest, node), (0, 0));
    assert_eq!(attributes_of(&mut guest, ROOT), (0, 1_000_000));
}

#[test]
fn files_are_created_written_read_and_released() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "new", 0o666).unwrap();
    assert_eq!(guest.write(handle, 0, b"hello world"), Ok(11));
    assert_eq!(guest.write(handle, 6, b"WORLD"), Ok(5));
    assert_eq!(guest.read(handle, 0, 4096), Ok(b"hello WORLD".to_vec()));
    assert_eq!(guest.read(handle, 4, 3), Ok(b"o W".to_vec()));
    assert_eq!(guest.read(handle, 11, 10), Ok(vec![]));
    for opcode in [25, 20] {
        assert!(guest.ask(opcode, node, Body::new().u64(handle).u64(0).u64(0)).is_ok());
    }
    guest.release(handle).unwrap();
    assert_eq!(guest.read(handle, 0, 1), Err(libc::EBADF));
    let path = guest.folder.0.join("new");
    assert_eq!(fs::read(&path).unwrap(), b"hello WORLD");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!((guest.counter("written_bytes"), guest.counter("read_bytes")), (16, 14));
}

#[test]
fn a_megabyte_moves_in_one_request_through_many_buffers() {
    use super::guest::{ANSWER, REQUEST, REQUESTS};
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "big", 0o600).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 3) as u8).collect();
    let body = Guest::write_body(handle, 0, &data, 0, 0);
    let mut request = guest.header(16, 0, body.0.len());
    request.extend(&body.0);
    guest.queues[0].write(REQUEST, &request);
    let mut buffers = vec![(REQUEST, 40, false), (REQUEST + 40, 40, false)];
    for page in 0..64 {
        buffers.push((REQUEST + 80 + page * 0x4000, 0x4000, false));
    }
    buffers.push((ANSWER, 24, true));
    assert_eq!(guest.offer(REQUESTS, &buffers), 24);
    assert_eq!(fs::read(guest.folder.0.join("big")).unwrap(), data);

    let body = Guest::read_body(handle, 0, 1 << 20);
    let mut request = guest.header(15, 0, body.0.len());
    request.extend(&body.0);
    guest.queues[0].write(REQUEST, &request);
    let mut buffers = vec![(REQUEST, 80, false), (ANSWER, 16, true)];
    for page in 0..64 {
        buffers.push((ANSWER + 16 + page * 0x4000, 0x4000, true));
    }
    let used = guest.offer(REQUESTS, &buffers);
    assert_eq!(guest.answer(used), Some((0, data)));
}

#[test]
fn appending_lands_at_the_end_whatever_the_guest_believes() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "log", 0o600).unwrap();
    guest.write(handle, 0, b"one").unwrap();
    let appending = guest.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    let body = Guest::write_body(appending, 0, b"two", 0, libc::O_APPEND);
    assert_eq!(guest.ask(16, node, body).unwrap().u32(0), 3);
    assert_eq!(guest.read(handle, 0, 100), Ok(b"onetwo".to_vec()));
}

#[test]
fn attributes_are_told_and_changed() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.write(handle, 0, b"contents").unwrap();
    let attr = getattr(&mut guest, node);
    assert_eq!((attr.u64(ATTR_SIZE), attr.u32(ATTR_MODE)), (8, libc::S_IFREG | 0o600));
    // FATTR_MODE | FATTR_SIZE | FATTR_MTIME
    let body = setattr_body(1 | 8 | 32, 3, 0o640, (0, 0), 1_000_000);
    let answer = guest.ask(4, node, body).unwrap();
    assert_eq!((answer.u64(16 + ATTR_SIZE), answer.u32(16 + ATTR_MODE)), (3, libc::S_IFREG | 0o640));
    let metadata = fs::metadata(guest.folder.0.join("file")).unwrap();
    assert_eq!((metadata.len(), metadata.mtime(), metadata.mtime_nsec()), (3, 1_000_000, 5));
    if is_root() {
        let answer = guest.ask(4, node, setattr_body(2 | 4, 0, 0, (1234, 2345), 0)).unwrap();
        assert_eq!((answer.u32(16 + ATTR_UID), answer.u32(16 + ATTR_GID)), (1234, 2345));
    }
    let statx = guest.ask(52, node, Body::new().u32(0).u32(0).u64(0).u32(0).u32(0x7ff)).unwrap();
    assert_eq!((statx.0.len(), statx.u64(32 + 40)), (288, 3));
}

#[test]
fn directories_are_made_listed_and_removed() {
    let mut guest = Guest::new();
    let body = Body::new().u32(0o755).u32(0).name("dir");
    let node = guest.ask(9, ROOT, body).unwrap().u64(0);
    let mut expected = vec![(".".to_owned(), 0), ("..".to_owned(), 0)];
    for number in 0..100 {
        let name = format!("entry-{number:03}");
        fs::write(guest.folder.0.join("dir").join(&name), "").unwrap();
        expected.push((name, 0));
    }
    for size in [64, 200, 4096, 1 << 17] {
        assert_eq!(guest.list(node, false, size), expected, "{size} bytes at a time");
    }
    for size in [200, 4096] {
        let listed = guest.list(node, true, size);
        let names: Vec<_> = listed.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, expected.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        // Each entry but those two is a reference of its own.
        assert!(listed.iter().all(|(name, node)| (*node == 0) == name.starts_with('.')));
    }
    let known = guest.list(node, true, 4096)[50].1;
    assert_eq!(getattr(&mut guest, known).u32(ATTR_NLINK), 1);
    assert_eq!(guest.ask(11, ROOT, Body::new().name("dir")), Err(libc::ENOTEMPTY));
    for number in 0..100 {
        guest.ask(10, node, Body::new().name(&format!("entry-{number:03}"))).unwrap();
    }
    guest.ask(11, ROOT, Body::new().name("dir")).unwrap();
    assert!(!guest.folder.0.join("dir").exists());
}

#[test]
fn links_nodes_and_temporary_files_are_made() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    let linked = guest.ask(13, ROOT, Body::new().u64(node).name("second")).unwrap();
    assert_eq!((linked.u64(0), linked.u32(ENTRY_ATTR + ATTR_NLINK)), (node, 2));
    let link = guest.ask(6, ROOT, Body::new().name("soft").name("/some/where")).unwrap().u64(0);
    assert_eq!(guest.ask(5, link, Body::new()).unwrap().0, b"/some/where");
    let fifo = Body::new().u32(libc::S_IFIFO | 0o666).u32(0).u32(0o027).u32(0).name("fifo");
    let fifo = guest.ask(8, ROOT, fifo).unwrap();
    assert_eq!(fifo.u32(ENTRY_ATTR + ATTR_MODE), libc::S_IFIFO | 0o640);
    let flags = (libc::O_RDWR | libc::O_EXCL) as u32;
    let temporary = Body::new().u32(flags).u32(libc::S_IFREG | 0o600).u32(0).u32(0).name("/");
    let temporary = guest.ask(51, ROOT, temporary).unwrap();
    assert_eq!(temporary.u32(ENTRY_ATTR + ATTR_NLINK), 0);
    assert_eq!(guest.write(temporary.u64(128), 0, b"unseen"), Ok(6));
    guest.release(temporary.u64(128)).unwrap();
    guest.release(handle).unwrap();
}

#[test]
fn names_are_moved_with_and_without_flags() {
    let mut guest = Guest::new();
    let path = guest.folder.0.clone();
    for name in ["a", "b"] {
        fs::write(path.join(name), name).unwrap();
    }
    guest.ask(12, ROOT, Body::new().u64(ROOT).name("a").name("c")).unwrap();
    let rename2 = |flags, from, to| Body::new().u64(ROOT).u32(flags).u32(0).name(from).name(to);
    assert_eq!(guest.ask(45, ROOT, rename2(libc::RENAME_NOREPLACE, "b", "c")), Err(libc::EEXIST));
    guest.ask(45, ROOT, rename2(libc::RENAME_EXCHANGE, "b", "c")).unwrap();
    let contents = |name| fs::read_to_string(path.join(name)).unwrap();
    assert_eq!((contents("b"), contents("c")), ("a".into(), "b".into()));
    assert_eq!(guest.ask(45, ROOT, rename2(8, "b", "c")), Err(libc::EINVAL));
}

#[test]
fn extended_attributes_are_set_listed_got_and_removed() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "file", 0o600).unwrap();
    let set = Body::new().u32(5).u32(0).u32(0).u32(0).name("user.note").bytes(b"value");
    guest.ask(21, node, set).unwrap();
    let get = |size| Body::new().u32(size).u32(0).name("user.note");
    assert_eq!(guest.ask(22, node, get(0)).unwrap().u32(0), 5);
    assert_eq!(guest.ask(22, node, get(100)).unwrap().0, b"value");
    assert_eq!(guest.ask(22, node, get(4)), Err(libc::ERANGE));
    let list = |size| Body::new().u32(size).u32(0);
    assert_eq!(guest.ask(23, node, list(0)).unwrap().u32(0), 10);
    assert_eq!(guest.ask(23, node, list(100)).unwrap().0, b"user.note\0");
    guest.ask(24, node, Body::new().name("user.note")).unwrap();
    assert_eq!(guest.ask(22, node, get(100)), Err(libc::ENODATA));
}

#[test]
fn space_is_allocated_punched_sought_and_copied() {
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    let allocate = |mode| Body::new().u64(handle).u64(0).u64(1 << 20).u32(mode).u32(0);
    guest.ask(43, 0, allocate(0)).unwrap();
    let path = guest.folder.0.join("file");
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    guest.write(handle, 1 << 19, b"data").unwrap();
    guest.ask(43, 0, Body::new().u64(handle).u64(0).u64(1 << 19).u32(3).u32(0)).unwrap();
    let seek = |whence: i32| Body::new().u64(handle).u64(0).u32(whence as u32).u32(0);
    assert_eq!(guest.ask(46, 0, seek(libc::SEEK_HOLE)).unwrap().u64(0), 0);
    assert!(guest.ask(46, 0, seek(libc::SEEK_DATA)).unwrap().u64(0) <= 1 << 19);
    assert_eq!(guest.ask(46, 0, seek(libc::SEEK_END)), Err(libc::EINVAL));
    let (_, to) = guest.create(ROOT, "copy", 0o600).unwrap();
    let copy = Body::new().u64(handle).u64(1 << 19).u64(0).u64(to).u64(10).u64(4).u64(0);
    assert_eq!(guest.ask(47, 0, copy).unwrap().u32(0), 4);
    assert_eq!(guest.read(to, 10, 10), Ok(b"data".to_vec()));
    assert!(guest.counter("pooled_requests") >= 3);
}

#[test]
fn the_file_system_is_described_and_synced() {
    let mut guest = Guest::new();
    let statistics = guest.ask(17, ROOT, Body::new()).unwrap();
    assert_eq!((statistics.0.len(), statistics.u32(44)), (80, 255));
    guest.ask(50, ROOT, Body::new().u64(0)).unwrap();
    guest.ask(34, ROOT, Body::new().u32(4).u32(0)).unwrap();
    let handle = guest.ask(27, ROOT, Body::new().u32(0).u32(0)).unwrap().u64(0);
    guest.ask(30, ROOT, Body::new().u64(handle).u32(0).u32(0)).unwrap();
    for unserved in [7, 37, 39, 40, 41, 48, 49, 99, u32::MAX] {
        let answer = guest.ask(unserved, ROOT, Body::new().bytes(&[0; 64]));
        assert_eq!(answer, Err(libc::ENOSYS), "opcode {unserved}");
    }
    let interrupt = guest.header(36, 0, 8);
    assert_eq!(guest.send(&[interrupt, vec![0; 8]].concat(), 64), None);
}

#[test]
fn what_a_user_creates_is_the_users() {
    let mut guest = Guest::new();
    if !is_root() {
        return;
    }
    fs::set_permissions(&guest.folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    (guest.uid, guest.gid) = (1001, 1002);
    let (node, _) = guest.create(ROOT, "mine", 0o600).unwrap();
    let attr = getattr(&mut guest, node);
    assert_eq!((attr.u32(ATTR_UID), attr.u32(ATTR_GID)), (1001, 1002));
    let metadata = fs::metadata(guest.folder.0.join("mine")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1001, 1002));
}

#[test]
fn writing_as_a_user_clears_set_uid() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "program", 0o755).unwrap();
    let path = guest.folder.0.join("program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let body = Guest::write_body(handle, 0, b"#!", 1 << 2, 0);
    assert_eq!(guest.ask(16, node, body).unwrap().u32(0), 2);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn locks_are_the_guests_own_unless_configured() {
    let lock = |handle, kind: i32, flags| {
        Body::new().u64(handle).u64(99).u64(0).u64(9).u32(kind as u32).u32(1).u32(flags).u32(0)
    };
    let mut guest = Guest::new();
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    for opcode in [31, 32, 33] {
        assert_eq!(guest.ask(opcode, 0, lock(handle, libc::F_WRLCK, 0)), Err(libc::ENOSYS));
    }
    let mut guest = Guest::with(Setup { remote_locks: true, ..Setup::default() });
    let (_, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    guest.ask(32, 0, lock(handle, libc::F_WRLCK, 0)).unwrap();
    assert_eq!(guest.ask(31, 0, lock(handle, libc::F_WRLCK, 0)).unwrap().u32(16), libc::F_UNLCK as u32);
    guest.ask(32, 0, lock(handle, libc::F_UNLCK, 0)).unwrap();
    guest.ask(32, 0, lock(handle, libc::F_WRLCK, 1)).unwrap();
    assert_eq!(guest.ask(32, 0, lock(handle, 7, 0)), Err(libc::EINVAL));
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut guest = Guest::with(Setup { readonly: true, ..Setup::default() });
    fs::write(guest.folder.0.join("file"), "kept").unwrap();
    let node = guest.node(ROOT, "file");
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(handle, 0, 10), Ok(b"kept".to_vec()));
    assert_eq!(guest.open(node, libc::O_RDWR), Err(libc::EROFS));
    assert_eq!(guest.create(ROOT, "new", 0o600), Err(libc::EROFS));
    assert_eq!(guest.ask(10, ROOT, Body::new().name("file")), Err(libc::EROFS));
    assert_eq!(guest.ask(4, node, setattr_body(8, 0, 0, (0, 0), 0)), Err(libc::EROFS));
    assert_eq!(fs::read(guest.folder.0.join("file")).unwrap(), b"kept");
}

#[test]
fn changes_of_the_host_are_seen() {
    let mut guest = Guest::cached(CachePolicy::None);
    let (node, handle) = guest.create(ROOT, "file", 0o600).unwrap();
    let file = fs::OpenOptions::new().write(true).open(guest.folder.0.join("file")).unwrap();
    file.write_all_at(b"from the host", 0).unwrap();
    assert_eq!(getattr(&mut guest, node).u64(ATTR_SIZE), 13);
    assert_eq!(guest.read(handle, 0, 100), Ok(b"from the host".to_vec()));
}
