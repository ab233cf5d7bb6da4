//! Mounts below a share: they are part of it.

use std::fs;

use super::fixture::*;
use crate::fs::host::{HostFs, ROOT_NODE, SessionOptions};

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
    assert_eq!(unmount(&path), 0);
    assert_eq!(fs.walk("volume").unwrap().node, before.node);
}
