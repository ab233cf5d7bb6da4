//! Ways out of the share that a guest may try, one by one. None may lead anywhere.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;

use super::super::Passthrough;
use super::fixture::*;
use crate::fs::backend::{AttributeChange, Creation, HostFs, NewTime, NodeId, ROOT_NODE};

fn flags(flags: i32) -> u32 {
    flags.cast_unsigned()
}

fn mode(mode: u32) -> AttributeChange {
    AttributeChange { mode: Some(mode), ..AttributeChange::default() }
}

/// Tries to read and to change what a node leads to, as a file and as a directory.
fn try_everything_with(fs: &Passthrough, node: NodeId) {
    for open in
        [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC, libc::O_PATH, libc::O_DIRECTORY]
    {
        if let Ok(handle) = fs.open_node(node, open) {
            assert_ne!(fs.read_at(handle, 0, 64).unwrap_or_default(), SECRET);
            let _ = fs.write_at(handle, 0, b"overwritten");
            fs.release(handle).unwrap();
        }
    }
    for name in [c"marker", c"fresh"] {
        if let Ok(entry) = fs.lookup(&root(), node, name) {
            assert_ne!(fs.read_node(entry.node).unwrap_or_default(), SECRET);
        }
        let _ = fs.create(&root(), node, name, flags(libc::O_RDWR), new(0o666));
        let _ = fs.mkdir(&root(), node, name, new(0o777));
        let _ = fs.mknod(&root(), node, name, new(libc::S_IFREG | 0o666));
        let _ = fs.symlink(&root(), node, name, c"x");
        let _ = fs.rename(&root(), (node, name), (node, c"moved"), 0);
        let _ = fs.link(&root(), node, node, c"linked");
        let _ = fs.unlink(&root(), node, name);
        let _ = fs.rmdir(&root(), node, name);
    }
    let _ = fs.tmpfile(&root(), node, flags(libc::O_RDWR), new(0o666));
    assert!(!fs.list(node).unwrap_or_default().iter().any(|(name, _)| name == "marker"));
    let change = AttributeChange {
        uid: Some(99),
        gid: Some(99),
        atime: Some(NewTime::At(1, 1)),
        mtime: Some(NewTime::At(1, 1)),
        ..AttributeChange::default()
    };
    let _ = fs.set_attributes(&root(), node, None, &change);
    let _ = fs.set_attributes(&root(), node, None, &mode(0o777));
    let size = AttributeChange { size: Some(1), ..AttributeChange::default() };
    let _ = fs.set_attributes(&root(), node, None, &size);
    for name in [c"user.strato", c"trusted.strato", c"security.strato"] {
        let _ = fs.setxattr(&root(), node, name, b"x", 0, false);
        let _ = fs.removexattr(&root(), node, name);
    }
}

#[test]
fn symlinks_lead_nowhere() {
    let outside = Outside::new();
    let targets = [
        outside.folder.clone(),
        outside.marker.clone(),
        "../outside".into(),
        "../outside/marker".into(),
        "../../../../../../../../etc".into(),
        "/".into(),
        "..".into(),
    ];
    let fs = serve(&outside.share);
    for (number, target) in targets.iter().enumerate() {
        let name = format!("link{number}");
        symlink(target, outside.share.join(&name)).unwrap();
        let entry = fs.walk(&name).unwrap();
        assert_eq!(entry.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(code(&fs.open_node(entry.node, libc::O_RDONLY)), libc::ELOOP);
        assert_eq!(code(&fs.opendir(&root(), entry.node, 0)), libc::ENOTDIR);
        assert_eq!(code(&fs.lookup(&root(), entry.node, c"marker")), libc::ENOTDIR);
        let through =
            fs.create(&root(), ROOT_NODE, &c(&name), flags(libc::O_RDWR | libc::O_TRUNC), new(0o666));
        assert_eq!(code(&through), libc::ELOOP);
        try_everything_with(&fs, entry.node);
    }
    outside.assert_untouched();
}

#[test]
fn names_with_a_way_in_them_are_refused_everywhere() {
    let outside = Outside::new();
    fs::write(outside.share.join("own"), "").unwrap();
    fs::create_dir(outside.share.join("dir")).unwrap();
    let fs = serve(&outside.share);
    let own = fs.walk("own").unwrap().node;
    let directory = fs.walk("dir").unwrap().node;
    let long = CString::new(vec![b'a'; 256]).unwrap();
    let absolute = c(&outside.marker);
    let names = [
        c".",
        c"..",
        c"",
        c"/",
        c"../outside",
        c"../outside/marker",
        c"dir/..",
        c"dir/../../outside/marker",
        c"own/",
        &long,
        &absolute,
    ];
    for parent in [ROOT_NODE, directory] {
        for name in names {
            let refused = [
                code(&fs.lookup(&root(), parent, name)),
                code(&fs.mknod(&root(), parent, name, new(libc::S_IFREG))),
                code(&fs.mkdir(&root(), parent, name, new(0o777))),
                code(&fs.symlink(&root(), parent, name, c"x")),
                code(&fs.link(&root(), own, parent, name)),
                code(&fs.unlink(&root(), parent, name)),
                code(&fs.rmdir(&root(), parent, name)),
                code(&fs.rename(&root(), (parent, name), (parent, c"new"), 0)),
                code(&fs.rename(&root(), (ROOT_NODE, c"own"), (parent, name), 0)),
                code(&fs.create(&root(), parent, name, flags(libc::O_RDWR), new(0o666))),
            ];
            let expected = match name.to_bytes() {
                b"" => libc::ENOENT,
                bytes if bytes.len() > 255 => libc::ENAMETOOLONG,
                _ => libc::EINVAL,
            };
            assert_eq!(refused, [expected; 10], "{name:?}");
        }
    }
    assert_eq!(fs.names(ROOT_NODE), ["dir", "own"]);
    outside.assert_untouched();
}

#[test]
fn magic_links_lead_nowhere() {
    if !is_root() {
        return;
    }
    let outside = Outside::new();
    private_mounts();
    let marker = fs::File::open(&outside.marker).unwrap();
    let folder = fs::File::open(&outside.folder).unwrap();
    let number = |file: &fs::File| std::os::fd::AsRawFd::as_raw_fd(file);
    let fs = serve(&outside.share);
    // As symlinks into /proc, and in a /proc that is part of the share.
    fs::create_dir(outside.share.join("proc")).unwrap();
    mount_proc(&outside.share.join("proc"));
    let process = std::process::id();
    let links = [
        "root".to_owned(),
        "cwd".to_owned(),
        "exe".to_owned(),
        format!("fd/{}", number(&marker)),
        format!("fd/{}", number(&folder)),
        "ns/mnt".to_owned(),
    ];
    for (count, link) in links.iter().enumerate() {
        let name = format!("magic{count}");
        symlink(format!("/proc/{process}/{link}"), outside.share.join(&name)).unwrap();
        try_everything_with(&fs, fs.walk(&name).unwrap().node);
        let entry = fs.walk(&format!("proc/{process}/{link}")).unwrap();
        assert_eq!(entry.attributes.mode & libc::S_IFMT, libc::S_IFLNK, "{link}");
        assert_eq!(code(&fs.lookup(&root(), entry.node, c"etc")), libc::ENOTDIR);
        assert_eq!(code(&fs.open_node(entry.node, libc::O_RDONLY)), libc::ELOOP);
        assert_eq!(code(&fs.opendir(&root(), entry.node, 0)), libc::ENOTDIR);
        try_everything_with(&fs, entry.node);
    }
    let itself = fs.walk("proc/self").unwrap();
    assert_eq!(itself.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
    outside.assert_untouched();
}

#[test]
fn hard_links_are_made_of_the_guests_own_files_only() {
    let outside = Outside::new();
    symlink(&outside.marker, outside.share.join("to-marker")).unwrap();
    let fs = serve(&outside.share);
    let link = fs.walk("to-marker").unwrap().node;
    fs.link(&root(), link, ROOT_NODE, c"hard").unwrap();
    let hard = fs.walk("hard").unwrap();
    assert_eq!(hard.node, link, "the symlink itself has got the name");
    assert_eq!(hard.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
    for guess in (2..100).filter(|id| *id != link) {
        assert_eq!(code(&fs.link(&root(), guess, ROOT_NODE, c"guessed")), libc::ESTALE);
    }
    outside.assert_untouched();
}

#[test]
fn special_files_are_never_opened_on_the_host() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let device = |major: u32, minor: u32| (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    let kinds = [
        (c"fifo", libc::S_IFIFO, 0),
        (c"socket", libc::S_IFSOCK, 0),
        (c"null", libc::S_IFCHR, device(1, 3)),
        (c"memory", libc::S_IFCHR, device(1, 1)),
        (c"disk", libc::S_IFBLK, device(254, 0)),
    ];
    for (name, kind, rdev) in kinds {
        let made =
            fs.mknod(&root(), ROOT_NODE, name, Creation { mode: kind | 0o666, umask: 0, rdev }).unwrap();
        assert_eq!(made.attributes.mode, kind | 0o666);
        let major_minor = (made.attributes.rdev.major, made.attributes.rdev.minor);
        assert_eq!(device(major_minor.0, major_minor.1), rdev);
        for open in [libc::O_RDWR | libc::O_NONBLOCK, libc::O_PATH, libc::O_RDONLY, libc::O_WRONLY] {
            assert_eq!(code(&fs.open_node(made.node, open)), libc::ENXIO);
        }
        assert_eq!(code(&fs.opendir(&root(), made.node, 0)), libc::ENOTDIR);
        // An open by name finds the same.
        let by_name = fs.create(&root(), ROOT_NODE, name, flags(libc::O_RDWR), new(0o666));
        assert_eq!(code(&by_name), libc::ENXIO);
        let size = AttributeChange { size: Some(0), ..AttributeChange::default() };
        assert_eq!(code(&fs.set_attributes(&root(), made.node, None, &size)), libc::EINVAL);
    }
    let chr = Creation { mode: libc::S_IFCHR | 0o666, umask: 0, rdev: device(1, 3) };
    assert_eq!(code(&fs.mknod(&user(1000, 1000), ROOT_NODE, c"mine", chr)), libc::EPERM);
    let odd = Creation { mode: 0o170000, umask: 0, rdev: 0 };
    assert_eq!(code(&fs.mknod(&root(), ROOT_NODE, c"odd", odd)), libc::EINVAL);
}

#[test]
fn open_flags_of_other_calls_do_nothing() {
    let outside = Outside::new();
    fs::write(outside.share.join("own"), "own").unwrap();
    let fs = serve(&outside.share);
    let node = fs.walk("own").unwrap().node;
    for odd in
        [libc::O_PATH, libc::O_CREAT, libc::O_TMPFILE, libc::O_DIRECTORY, libc::O_NOFOLLOW, libc::O_ASYNC]
    {
        let handle = fs.open_node(node, libc::O_RDONLY | odd).unwrap();
        assert_eq!(fs.read_at(handle, 0, 10).unwrap(), b"own");
    }
    assert_eq!(code(&fs.open_node(node, libc::O_ACCMODE)), libc::EINVAL);
    assert_eq!(code(&fs.open_node(ROOT_NODE, libc::O_RDONLY)), libc::EISDIR);
    let handle =
        fs.opendir(&root(), ROOT_NODE, flags(libc::O_PATH | libc::O_RDWR | libc::O_TMPFILE)).unwrap();
    fs.readdir(handle.handle, 0, &mut |_| true).unwrap();
    assert_eq!(fs.names(ROOT_NODE), ["own"]);
}

#[test]
fn guessed_ids_are_nobodys() {
    let outside = Outside::new();
    fs::write(outside.share.join("own"), "own").unwrap();
    let fs = serve(&outside.share);
    let node = fs.walk("own").unwrap().node;
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    let mut seed = 0x5eed_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed ^ (seed >> 29)
    };
    let near = (0..64).filter(|id| ![ROOT_NODE, node, handle].contains(id));
    for id in near.chain((0..2000).map(|_| random())).chain([u64::MAX, u64::MAX - 1, 1 << 63]) {
        assert_eq!(code(&fs.attributes(id, None)), libc::ESTALE);
        assert_eq!(code(&fs.lookup(&root(), id, c"own")), libc::ESTALE);
        assert_eq!(code(&fs.open_node(id, libc::O_RDONLY)), libc::ESTALE);
        assert_eq!(code(&fs.link(&root(), id, ROOT_NODE, c"new")), libc::ESTALE);
        assert_eq!(code(&fs.file(id).map(drop)), libc::EBADF);
        assert_eq!(code(&fs.readdir(id, 0, &mut |_| true)), libc::EBADF);
        assert_eq!(code(&fs.release(id)), libc::EBADF);
        fs.forget(id, 1);
    }
    // Those of an earlier guest are no better.
    fs.end();
    assert_eq!(code(&fs.attributes(node, None)), libc::ESTALE);
    assert_eq!(code(&fs.file(handle).map(drop)), libc::EBADF);
    assert_eq!(fs.levels(), (1, 0));
    let again = fs.walk("own").unwrap().node;
    assert_ne!(again, node);
    outside.assert_untouched();
}

#[test]
fn directory_moved_out_of_the_share_is_no_bridge() {
    let outside = Outside::new();
    fs::create_dir_all(outside.share.join("dir/below")).unwrap();
    let fs = serve(&outside.share);
    let directory = fs.walk("dir").unwrap().node;
    let below = fs.walk("dir/below").unwrap().node;
    let elsewhere = outside.scratch.make("elsewhere");
    fs::write(elsewhere.join("marker"), SECRET).unwrap();
    fs::rename(outside.share.join("dir"), elsewhere.join("dir")).unwrap();
    // What the guest knows of it goes on working, below it.
    fs.make_file(below, c"still", b"here").unwrap();
    assert_eq!(fs::read(elsewhere.join("dir/below/still")).unwrap(), b"here");
    // There is no way up.
    for name in [c"..", c"../marker", c"../../outside/marker"] {
        assert_eq!(code(&fs.lookup(&root(), directory, name)), libc::EINVAL);
    }
    assert_eq!(code(&fs.lookup(&root(), directory, c"marker")), libc::ENOENT);
    fs.symlink(&root(), directory, c"up", c"../marker").unwrap();
    let up = fs.lookup(&root(), directory, c"up").unwrap().node;
    assert_eq!(code(&fs.open_node(up, libc::O_RDONLY)), libc::ELOOP);
    assert_eq!(code(&fs.lookup(&root(), ROOT_NODE, c"dir")), libc::ENOENT);
    outside.assert_untouched();
}

#[test]
fn ids_that_mean_no_change_do_not_create_files_as_us() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let nobody = u32::MAX;
    let mut with_group = user(1000, 1000);
    with_group.supplementary_gid = Some(nobody);
    for caller in [user(nobody, 0), user(0, nobody), user(nobody, nobody), with_group] {
        let made = [
            code(&fs.mkdir(&caller, ROOT_NODE, c"d", new(0o755))),
            code(&fs.create(&caller, ROOT_NODE, c"f", flags(libc::O_RDWR), new(0o644))),
            code(&fs.symlink(&caller, ROOT_NODE, c"l", c"x")),
            code(&fs.mknod(&caller, ROOT_NODE, c"n", new(libc::S_IFREG))),
            code(&fs.tmpfile(&caller, ROOT_NODE, flags(libc::O_RDWR), new(0o644))),
        ];
        assert_eq!(made, [libc::EINVAL; 5]);
    }
    assert!(fs.names(ROOT_NODE).is_empty());
}
