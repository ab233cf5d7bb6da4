//! Mounts below a share: they are part of it.

use std::fs;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::super::Root;
use super::fixture::*;
use crate::fs::backend::{AttributeChange, HostFs, ROOT_NODE, Revocation, SessionOptions, ShareId};
use crate::fs::window::{Mapping, ReservedWindow, Window, page_size};

#[test]
fn mounts_below_the_share_are_crossed_and_announced() {
    if !is_root() {
        return;
    }
    let outside = Outside::new();
    private_mounts();
    for name in ["plain", "tmpfs", "bound"] {
        fs::create_dir(outside.share.join(name)).unwrap();
    }
    fs::write(outside.share.join("tmpfs/hidden"), "below the mount").unwrap();
    mount_tmpfs(&outside.share.join("tmpfs"));
    fs::write(outside.share.join("tmpfs/seen"), "in the mount").unwrap();
    let volume = outside.scratch.make("volume");
    fs::write(volume.join("file"), "volume").unwrap();
    bind(&volume, &outside.share.join("bound"));
    let fs = serve(&outside.share);
    let submounts = |names: [&str; 3]| names.map(|name| fs.walk(name).unwrap().submount);
    assert_eq!(submounts(["plain", "tmpfs", "bound"]), [false, true, true]);
    // The second time they are known already.
    assert_eq!(submounts(["plain", "tmpfs", "bound"]), [false, true, true]);
    assert_eq!(fs.names(fs.walk("tmpfs").unwrap().node), ["seen"]);
    assert_eq!(code(&fs.walk("tmpfs/hidden")), libc::ENOENT);
    assert_eq!(fs.read_node(fs.walk("bound/file").unwrap().node).unwrap(), b"volume");
    assert!(!fs.walk("bound/file").unwrap().submount);
    let bound = fs.walk("bound").unwrap().node;
    let file = fs.walk("bound/file").unwrap().node;
    assert_eq!(code(&fs.link(&root(), file, ROOT_NODE, c"link")), libc::EXDEV);
    assert_eq!(code(&fs.rename(&root(), (bound, c"file"), (ROOT_NODE, c"file"), 0)), libc::EXDEV);
    assert_eq!(code(&fs.lookup(&root(), bound, c"..")), libc::EINVAL);
    assert_eq!(code(&fs.rmdir(&root(), ROOT_NODE, c"tmpfs")), libc::EBUSY);
    fs.syncfs(ROOT_NODE).unwrap();
    fs.begin(SessionOptions::default());
    assert!(!fs.walk("tmpfs").unwrap().submount, "only if the guest knows what it means");
    fs.syncfs(ROOT_NODE).unwrap();
    outside.assert_untouched();
}

#[test]
fn same_file_through_two_mounts_is_two_files() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    private_mounts();
    let original = folder.make("original");
    fs::write(original.join("file"), "x").unwrap();
    bind(&original, &folder.make("again"));
    let fs = serve(folder.path());
    let (first, second) = (fs.walk("original/file").unwrap(), fs.walk("again/file").unwrap());
    assert_ne!(first.node, second.node);
    assert_eq!(first.attributes.ino, second.attributes.ino);
}

#[test]
fn mount_that_appears_later_is_seen_by_the_next_lookup() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    private_mounts();
    let path = folder.make("volume");
    let fs = serve(folder.path());
    let before = fs.walk("volume").unwrap();
    // Known files are expected from now on.
    (0..20).for_each(|_| assert_eq!(fs.walk("volume").unwrap().node, before.node));
    mount_tmpfs(&path);
    let after = fs.walk("volume").unwrap();
    assert_ne!(after.node, before.node);
    assert!(after.submount && !before.submount);
    assert_eq!(unmount(&path), libc::EBUSY);
    fs.forget(after.node, 1);
    unmount_released(&path, "forgotten");
    assert_eq!(fs.walk("volume").unwrap().node, before.node);
}

#[test]
fn overlay_keeps_files_the_same_when_they_are_copied_up() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    private_mounts();
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| folder.make(name));
    fs::create_dir(lower.join("dir")).unwrap();
    for name in ["a", "b", "c", "dir/d"] {
        fs::write(lower.join(name), format!("lower {name}")).unwrap();
    }
    if !mount_overlay(&merged, &lower, &upper, &work) {
        return;
    }
    let fs = serve(&merged);
    let before = fs.walk("a").unwrap();
    let reader = fs.open_node(before.node, libc::O_RDONLY).unwrap();
    let mode = AttributeChange { mode: Some(0o600), ..AttributeChange::default() };
    fs.set_attributes(&root(), before.node, None, &mode).unwrap();
    assert!(upper.join("a").exists(), "it was copied up");
    let after = fs.walk("a").unwrap();
    assert_eq!((after.node, after.attributes.ino), (before.node, before.attributes.ino));
    assert_eq!(after.attributes.mode & 0o777, 0o600);
    let writer = fs.open_node(after.node, libc::O_RDWR).unwrap();
    fs.write_at(writer, 0, b"UPPER").unwrap();
    assert_eq!(fs.read_node(before.node).unwrap(), b"UPPER a");
    assert_eq!(fs.read_at(reader, 0, 5).unwrap(), b"UPPER");
    // Names, links, whiteouts, nameless files.
    let b = fs.walk("b").unwrap();
    let linked = fs.link(&root(), b.node, ROOT_NODE, c"b2").unwrap();
    assert_eq!(fs.walk("b2").unwrap().node, linked.node);
    fs.rename(&root(), (ROOT_NODE, c"c"), (ROOT_NODE, c"e"), 0).unwrap();
    fs.unlink(&root(), ROOT_NODE, c"b").unwrap();
    assert_eq!(code(&fs.walk("b")), libc::ENOENT);
    assert_eq!(fs.names(ROOT_NODE), ["a", "b2", "dir", "e"]);
    let directory = fs.walk("dir").unwrap().node;
    fs.make_file(directory, c"new", b"new").unwrap();
    assert_eq!(fs.names(directory), ["d", "new"]);
    match fs.tmpfile(&root(), directory, libc::O_RDWR.cast_unsigned(), new(0o600)) {
        Ok((entry, opened)) => {
            fs.write_at(opened.handle, 0, b"tmp").unwrap();
            fs.link(&root(), entry.node, directory, c"tmp").unwrap();
            assert_eq!(fs::read(merged.join("dir/tmp")).unwrap(), b"tmp");
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
    }
    fs.mkdir(&user(1000, 1000), ROOT_NODE, c"mine", new(0o755)).unwrap();
    assert_eq!(fs.walk("mine").unwrap().attributes.uid, 1000);
    fs.setxattr(&root(), before.node, c"user.a", b"1", 0, false).unwrap();
    fs.syncfs(ROOT_NODE).unwrap();
}

#[test]
fn files_are_mapped_only_where_a_mapping_shows_them_as_they_are() {
    if !is_root() {
        return;
    }
    let outside = Outside::new();
    private_mounts();
    mount_tmpfs(&outside.share);
    for name in ["lower", "upper", "work", "merged", "proc"] {
        fs::create_dir(outside.share.join(name)).unwrap();
    }
    for name in ["plain", "bound", "lower/file"] {
        fs::write(outside.share.join(name), name).unwrap();
    }
    mount_proc(&outside.share.join("proc"));
    bind(&outside.share.join("proc/version"), &outside.share.join("bound"));
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| outside.share.join(name));
    let overlay = mount_overlay(&merged, &lower, &upper, &work);
    let fs = serve(&outside.share);
    assert!(!fs.walk("plain").unwrap().attributes.mapped, "not agreed on");
    fs.begin(SessionOptions { mapped_files: true, ..SessionOptions::default() });
    let cases = [
        ("plain", 0),
        ("bound", libc::ENODEV),
        ("proc/version", libc::ENODEV),
        ("merged/file", libc::ENODEV),
    ];
    for (path, error) in cases.into_iter().take(if overlay { 4 } else { 3 }) {
        // The second time it is known already.
        for _ in 0..2 {
            let entry = fs.walk(path).unwrap();
            assert_eq!(entry.attributes.mapped, error == 0, "{path}");
            assert_eq!(fs.attributes(entry.node, None).unwrap().0.mapped, error == 0, "{path}");
            assert_eq!(code(&fs.open_to_map(entry.node, false)), error, "{path}");
        }
    }
    assert_eq!(fs::read_dir(upper).unwrap().count(), 0, "asking has copied nothing up");
}

/// Someone with a page of a share's file in a window.
#[derive(Debug)]
struct Mapper {
    window: ReservedWindow,
    told: Mutex<Vec<ShareId>>,
}

impl Revocation for Mapper {
    fn revoke(&self, share: ShareId) {
        self.told.lock().unwrap().push(share);
        self.window.unmap(0, page_size());
    }
}

#[test]
fn a_removed_share_is_unmapped_and_not_busy() {
    if !is_root() {
        return;
    }
    let outside = Outside::new();
    private_mounts();
    mount_tmpfs(&outside.share);
    fs::write(outside.share.join("file"), "contents").unwrap();
    let fs = passthrough(Root::Collection);
    fs.add_share(c"share", share(&outside.share)).unwrap();
    let mapper =
        Arc::new(Mapper { window: ReservedWindow::new(page_size()).unwrap(), told: Mutex::default() });
    let told: Weak<Mapper> = Arc::downgrade(&mapper);
    fs.tell_of_removals(told);
    let file = fs.open_to_map(fs.walk("share/file").unwrap().node, true).unwrap();
    let mapping = Mapping { window_offset: 0, len: page_size(), file_offset: 0, writable: true };
    mapper.window.map(file.as_fd(), mapping).unwrap();
    let number = file.share();
    assert!(!file.revoked());
    // A request that still has the file: it is told, and the removal waits for it.
    assert_eq!(code(&fs.remove_share(c"share", Duration::ZERO)), libc::ETIMEDOUT);
    assert_eq!((file.revoked(), mapper.told.lock().unwrap().clone()), (true, vec![number]));
    assert_eq!(unmount(&outside.share), libc::EBUSY);
    drop(file);
    unmount_released(&outside.share, "the mapping is gone");
}
