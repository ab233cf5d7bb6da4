//! In whose name files are made, and with which capabilities.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::thread;

use super::super::{Passthrough, PassthroughConfig, Root};
use super::fixture::*;
use crate::fs::backend::{AttributeChange, Caller, Creation, HostFs, ROOT_NODE, SessionOptions};

fn flags(flags: i32) -> u32 {
    flags.cast_unsigned()
}

/// Effective capabilities, ids and groups of the calling thread, as /proc tells them.
fn identity() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let wanted = ["Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:", "Umask:"];
    status.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect()
}

/// On a thread of its own, since what it does to its thread stays.
fn on_thread(test: impl FnOnce() + Send) {
    thread::scope(|scope| scope.spawn(test).join().unwrap());
}

fn create_all_kinds(fs: &Passthrough, caller: &Caller) {
    let made = [
        fs.mkdir(caller, ROOT_NODE, c"dir", new(0o755)).unwrap(),
        fs.mknod(caller, ROOT_NODE, c"node", new(libc::S_IFREG | 0o644)).unwrap(),
        fs.mknod(caller, ROOT_NODE, c"fifo", new(libc::S_IFIFO | 0o644)).unwrap(),
        fs.symlink(caller, ROOT_NODE, c"link", c"x").unwrap(),
        fs.create(caller, ROOT_NODE, c"file", flags(libc::O_RDWR), new(0o400)).unwrap().0,
        fs.tmpfile(caller, ROOT_NODE, flags(libc::O_RDWR), new(0o600)).unwrap().0,
    ];
    for entry in made {
        assert_eq!((entry.attributes.uid, entry.attributes.gid), (caller.uid, caller.gid));
    }
}

#[test]
fn files_belong_to_the_caller_and_the_thread_stays_itself() {
    if !is_root() {
        return;
    }
    on_thread(|| {
        let folder = Scratch::new();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let fs = serve(folder.path());
        fs.prepare_thread().unwrap();
        let before = identity();
        create_all_kinds(&fs, &user(1000, 2000));
        assert_eq!(identity(), before);
        // Errors are a way back, too.
        assert_eq!(code(&fs.mkdir(&user(1000, 2000), ROOT_NODE, c"dir", new(0o755))), libc::EEXIST);
        let mut grouped = user(7, 8);
        grouped.supplementary_gid = Some(9);
        assert_eq!(code(&fs.mkdir(&grouped, ROOT_NODE, c"dir", new(0o755))), libc::EEXIST);
        assert_eq!(identity(), before);
    });
}

#[test]
fn permission_bits_are_the_guests_to_judge() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let fs = serve(folder.path());
    // The guest's kernel let the caller through: it has CAP_DAC_OVERRIDE there, or a group.
    create_all_kinds(&fs, &user(1000, 1000));
}

#[test]
fn supplementary_group_counts_for_the_set_gid_bit() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let directory = folder.make("shared");
    chown(&directory, Some(0), Some(500)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2777)).unwrap();
    let fs = serve(&directory);
    let made = |name, supplementary_gid| {
        let caller = Caller { supplementary_gid, ..user(1000, 1000) };
        let entry = fs.create(&caller, ROOT_NODE, name, flags(libc::O_RDWR), new(0o2755)).unwrap().0;
        (entry.attributes.gid, entry.attributes.mode & 0o7777)
    };
    assert_eq!(made(c"member", Some(500)), (500, 0o2755));
    assert_eq!(made(c"stranger", None), (500, 0o755));
}

#[test]
fn umask_is_applied_where_it_came_along() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let masked = Creation { mode: 0o666, umask: 0o027, rdev: 0 };
    let made = |fs: &Passthrough, name, new| {
        let made = fs.create(&root(), ROOT_NODE, name, flags(libc::O_RDWR), new).unwrap();
        made.0.attributes.mode & 0o7777
    };
    assert_eq!(made(&fs, c"guest-did", masked), 0o666);
    fs.begin(SessionOptions { dont_mask: true, posix_acl: true, ..SessionOptions::default() });
    assert_eq!(made(&fs, c"host-does", masked), 0o640);
    assert_eq!(made(&fs, c"none", Creation { umask: 0, ..masked }), 0o666);
    // A default ACL takes the umask's place: user::rw-, group::rw-, mask::rw-, other::---.
    let acl: Vec<u8> = [
        2_u32.to_le_bytes().to_vec(),
        [(1_u16, 6_u16), (4, 6), (0x10, 6), (0x20, 0)]
            .iter()
            .flat_map(|(tag, perm)| [tag.to_le_bytes(), perm.to_le_bytes(), [255; 2], [255; 2]].concat())
            .collect(),
    ]
    .concat();
    match fs.setxattr(&root(), ROOT_NODE, c"system.posix_acl_default", &acl, 0, false) {
        Ok(()) => assert_eq!(made(&fs, c"by-acl", masked), 0o660),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
    }
}

#[test]
fn privileges_are_killed_where_it_is_asked_for() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let path = folder.path().join("a");
    let mode = || {
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        mode
    };
    let node = fs.make_file(ROOT_NODE, c"a", b"data").unwrap().node;
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    mode();
    fs.write_at(handle, 0, b"x").unwrap();
    assert_eq!(mode(), 0o6755, "a privileged write keeps them");
    fs.write_unprivileged(handle, &mut || fs.write_at(handle, 0, b"x")).unwrap();
    assert_eq!(mode(), 0o755);
    let failed = fs.write_unprivileged(handle, &mut || Err(io::Error::from_raw_os_error(libc::ENOSPC)));
    assert_eq!(code(&failed), libc::ENOSPC);
    fs.write_at(handle, 0, b"x").unwrap();
    assert_eq!(mode(), 0o6755);
    chown(&path, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6745)).unwrap();
    fs.write_unprivileged(handle, &mut || fs.write_at(handle, 0, b"x")).unwrap();
    assert_eq!(mode(), 0o2745, "what the group cannot execute gives no privilege");
    let size = AttributeChange { size: Some(1), ..AttributeChange::default() };
    fs.set_attributes(&root(), node, None, &size).unwrap();
    assert_eq!(mode(), 0o6755);
    for handle in [None, Some(handle)] {
        let change = AttributeChange { kill_privileges: true, ..size };
        fs.set_attributes(&root(), node, handle, &change).unwrap();
        assert_eq!(mode(), 0o755);
    }
    fs.open(&root(), node, flags(libc::O_RDWR | libc::O_TRUNC), true).unwrap();
    assert_eq!(mode(), 0o755);
    let owner = AttributeChange { uid: Some(5), kill_privileges: true, ..AttributeChange::default() };
    fs.set_attributes(&root(), node, None, &owner).unwrap();
    assert_eq!(mode(), 0o755);
    fs.begin(SessionOptions { kill_privileges: true, ..SessionOptions::default() });
    let node = fs.walk("a").unwrap().node;
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    // A stranger's chown(2) to nobody comes as a change of nothing.
    fs.set_attributes(&user(7, 7), node, None, &AttributeChange::default()).unwrap();
    assert_eq!(mode(), 0o6755);
    for (caller, expected) in [(root(), 0o6755), (user(7, 7), 0o755)] {
        fs.fallocate(&caller, handle, 0, 0, 10).unwrap();
        assert_eq!(mode(), expected);
        fs.copy_file_range(&caller, (handle, 0), (handle, 100), 10).unwrap();
        assert_eq!(mode(), expected);
    }
    // VFS_CAP_REVISION_2, cap_net_raw
    let capability = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fs.setxattr(&root(), node, c"security.capability", &capability, 0, false).unwrap();
    fs.write_at(handle, 0, b"x").unwrap();
    assert_eq!(code(&fs.getxattr(node, c"security.capability", &mut [])), libc::ENODATA);
}

#[test]
fn acl_of_a_stranger_clears_the_set_gid_bit_if_asked() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let path = folder.path().join("a");
    let node = fs.make_file(ROOT_NODE, c"a", b"data").unwrap().node;
    let acl: Vec<u8> = [
        2_u32.to_le_bytes().to_vec(),
        [(1_u16, 7_u16), (4, 5), (0x20, 5)]
            .iter()
            .flat_map(|(tag, perm)| [tag.to_le_bytes(), perm.to_le_bytes(), [255; 2], [255; 2]].concat())
            .collect(),
    ]
    .concat();
    chown(&path, Some(1000), Some(500)).unwrap();
    for (caller, clear, expected) in
        [(user(1000, 1000), true, 0o755), (user(1000, 500), true, 0o2755), (user(1000, 1000), false, 0o2755)]
    {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
        match fs.setxattr(&caller, node, c"system.posix_acl_access", &acl, 0, clear) {
            Ok(()) => assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, expected),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }
}

#[test]
fn eight_capabilities_are_enough_and_are_all_that_stay() {
    if !is_root() {
        return;
    }
    on_thread(|| {
        let folder = Scratch::new();
        let config = PassthroughConfig::new(Root::Directory(share(folder.path()))).unwrap();
        let fs = Passthrough::new(PassthroughConfig { confine_threads: true, ..config }).unwrap();
        fs.prepare_thread().unwrap();
        let status = identity();
        let kept = 1_u64 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;
        assert!(status.contains(&format!("CapPrm:\t{kept:016x}CapEff:\t{kept:016x}")), "{status}");
        // Folders and files of somebody else, closed to everybody.
        let theirs = folder.make("theirs");
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o000)).unwrap();
        chown(&theirs, Some(3000), Some(3000)).unwrap();
        let directory = fs.walk("theirs").unwrap().node;
        let owner = user(3000, 3000);
        let (file, opened) = fs.create(&owner, directory, c"f", flags(libc::O_RDWR), new(0)).unwrap();
        assert_eq!(file.attributes.uid, 3000);
        fs.write_at(opened.handle, 0, b"data").unwrap();
        assert_eq!(fs.read_node(file.node).unwrap(), b"data");
        assert_eq!(fs.names(directory), ["f"]);
        let change = AttributeChange { uid: Some(4000), gid: Some(4000), ..AttributeChange::default() };
        fs.set_attributes(&root(), file.node, None, &change).unwrap();
        let change = AttributeChange { mode: Some(0o6711), size: Some(2), ..AttributeChange::default() };
        let after = fs.set_attributes(&root(), file.node, None, &change).unwrap().0;
        assert_eq!(after.mode & 0o7777, 0o6711);
        fs.link(&root(), file.node, ROOT_NODE, c"linked").unwrap();
        fs.setxattr(&root(), file.node, c"user.a", b"1", 0, false).unwrap();
        let capability = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fs.setxattr(&root(), file.node, c"security.capability", &capability, 0, false).unwrap();
        assert_eq!(code(&fs.setxattr(&root(), file.node, c"trusted.a", b"1", 0, false)), libc::EPERM);
        let null = Creation { mode: libc::S_IFCHR | 0o666, umask: 0, rdev: 0x103 };
        fs.mknod(&root(), directory, c"null", null).unwrap();
        fs.write_unprivileged(opened.handle, &mut || fs.write_at(opened.handle, 0, b"y")).unwrap();
        assert_eq!(fs.attributes(file.node, None).unwrap().0.mode & 0o7777, 0o711);
        let tmp = fs.tmpfile(&owner, directory, flags(libc::O_RDWR), new(0o600)).unwrap().0;
        fs.link(&owner, tmp.node, directory, c"tmp").unwrap();
        fs.rename(&root(), (directory, c"f"), (ROOT_NODE, c"g"), libc::RENAME_WHITEOUT).unwrap();
        for name in [c"tmp", c"null", c"f"] {
            fs.unlink(&root(), directory, name).unwrap();
        }
        fs.rmdir(&root(), ROOT_NODE, c"theirs").unwrap();
        fs.syncfs(ROOT_NODE).unwrap();
        assert_eq!(identity(), status);
    });
}
