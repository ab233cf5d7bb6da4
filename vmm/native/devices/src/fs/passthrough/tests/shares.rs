//! Shares that come and go while the guest runs.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::super::{CachePolicy, Passthrough, Root};
use super::fixture::*;
use crate::fs::backend::{HostFs, ROOT_NODE};

fn collection() -> Passthrough {
    passthrough(Root::Collection)
}

#[test]
fn collection_is_a_directory_that_the_guest_cannot_write() {
    let folder = Scratch::new();
    let fs = collection();
    for name in ["one", "two", "three"] {
        fs.add_share(&c(name), share(&folder.make(name))).unwrap();
    }
    let listed: Vec<_> = fs.list(ROOT_NODE).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, [".", "..", "one", "two", "three"]);
    let attributes = fs.attributes(ROOT_NODE, None).unwrap().0;
    assert_eq!((attributes.mode, attributes.nlink), (libc::S_IFDIR | 0o555, 5));
    assert_eq!(code(&fs.mkdir(&root(), ROOT_NODE, c"new", new(0o755))), libc::EROFS);
    assert_eq!(code(&fs.unlink(&root(), ROOT_NODE, c"one")), libc::EROFS);
    assert_eq!(code(&fs.rename(&root(), (ROOT_NODE, c"one"), (ROOT_NODE, c"x"), 0)), libc::EROFS);
    let flags = libc::O_RDWR.cast_unsigned();
    assert_eq!(code(&fs.create(&root(), ROOT_NODE, c"f", flags, new(0o644))), libc::EROFS);
    assert_eq!(code(&fs.access(&root(), ROOT_NODE, 2)), libc::EROFS);
    fs.access(&user(5, 5), ROOT_NODE, 5).unwrap();
    assert_eq!(code(&fs.getxattr(ROOT_NODE, c"user.a", &mut [])), libc::ENODATA);
    assert_eq!(code(&fs.lookup(&root(), ROOT_NODE, c"four")), libc::ENOENT);
    assert_eq!(fs.statfs(ROOT_NODE).unwrap().namelen, 255);
    fs.syncfs(ROOT_NODE).unwrap();
    let one = fs.walk("one").unwrap();
    assert!(one.submount);
    fs.make_file(one.node, c"file", b"data").unwrap();
    assert_eq!(fs::read(folder.path().join("one/file")).unwrap(), b"data");
}

#[test]
fn share_names_are_checked_and_unique() {
    let folder = Scratch::new();
    let fs = collection();
    let add = |name| code(&fs.add_share(&c(name), share(folder.path())));
    assert_eq!(
        [add("a"), add("a"), add(".."), add("a/b"), add("")],
        [0, libc::EEXIST, libc::EINVAL, libc::EINVAL, libc::ENOENT]
    );
    assert_eq!(code(&fs.remove_share(c"b", SOON)), libc::ENOENT);
    assert_eq!(descriptors_below(folder.path()), 1, "what was refused is not held");
    let single = serve(folder.path());
    assert_eq!(code(&single.add_share(c"a", share(folder.path()))), libc::EINVAL);
}

#[test]
fn files_do_not_move_between_shares() {
    let folder = Scratch::new();
    let fs = collection();
    fs.add_share(c"a", share(&folder.make("a"))).unwrap();
    fs.add_share(c"b", share(&folder.make("b"))).unwrap();
    let (a, b) = (fs.walk("a").unwrap().node, fs.walk("b").unwrap().node);
    let file = fs.make_file(a, c"file", b"x").unwrap().node;
    assert_eq!(code(&fs.rename(&root(), (a, c"file"), (b, c"file"), 0)), libc::EXDEV);
    assert_eq!(code(&fs.link(&root(), file, b, c"file")), libc::EXDEV);
    // One folder in two shares is two files: a read-only view stays one.
    let mut readonly = share(&folder.path().join("a"));
    readonly.readonly = true;
    readonly.cache = CachePolicy::None;
    fs.add_share(c"view", readonly).unwrap();
    let view = fs.walk("view/file").unwrap();
    assert_ne!(view.node, file);
    assert_eq!(view.attributes_timeout, Duration::ZERO);
    assert_eq!(code(&fs.open_node(view.node, libc::O_RDWR)), libc::EROFS);
    fs.open_node(file, libc::O_RDWR).unwrap();
}

#[test]
fn removed_share_takes_its_nodes_and_handles_with_it() {
    let folder = Scratch::new();
    let fs = collection();
    let path = folder.make("gone");
    fs.add_share(c"gone", share(&path)).unwrap();
    fs.add_share(c"stays", share(&folder.make("stays"))).unwrap();
    let top = fs.walk("gone").unwrap().node;
    let file = fs.make_file(top, c"file", b"x").unwrap().node;
    let handle = fs.open_node(file, libc::O_RDWR).unwrap();
    let listing = fs.opendir(&root(), top, 0).unwrap().handle;
    let stays = fs.walk("stays").unwrap().node;
    let kept = fs.make_file(stays, c"kept", b"y").unwrap().node;
    assert!(descriptors_below(&path) >= 4);
    fs.remove_share(c"gone", SOON).unwrap();
    assert_eq!(descriptors_below(&path), 0);
    assert_eq!(code(&fs.attributes(top, None)), libc::ESTALE);
    assert_eq!(code(&fs.attributes(file, None)), libc::ESTALE);
    assert_eq!(code(&fs.lookup(&root(), top, c"file")), libc::ESTALE);
    assert_eq!(code(&fs.file(handle).map(drop)), libc::EBADF);
    assert_eq!(code(&fs.readdir(listing, 0, &mut |_| true)), libc::EBADF);
    assert_eq!(code(&fs.lookup(&root(), ROOT_NODE, c"gone")), libc::ENOENT);
    fs.forget(file, 1);
    assert_eq!(fs.read_node(kept).unwrap(), b"y");
    // The name is free, and what is there now is new.
    fs.add_share(c"gone", share(&path)).unwrap();
    assert_ne!(fs.walk("gone").unwrap().node, top);
    assert_eq!(code(&fs.attributes(top, None)), libc::ESTALE);
}

#[test]
fn request_that_comes_through_late_adds_nothing_to_a_removed_share() {
    let folder = Scratch::new();
    let fs = collection();
    let path = folder.make("gone");
    fs::write(path.join("file"), "").unwrap();
    fs::write(path.join("other"), "").unwrap();
    fs.add_share(c"gone", share(&path)).unwrap();
    let top = fs.walk("gone").unwrap().node;
    let file = fs.walk("gone/file").unwrap().node;
    // As far as a removal has come before it takes what is there.
    fs.collection.as_ref().unwrap().find(c"gone").unwrap().close();
    assert_eq!(code(&fs.lookup(&root(), top, c"other")), libc::ESTALE);
    assert_eq!(code(&fs.open_node(file, libc::O_RDONLY)), libc::ESTALE);
    assert_eq!(code(&fs.opendir(&root(), top, 0)), libc::ESTALE);
    let flags = libc::O_RDWR.cast_unsigned();
    assert_eq!(code(&fs.create(&root(), top, c"new", flags, new(0o644))), libc::ESTALE);
    fs.remove_share(c"gone", SOON).unwrap();
    assert_eq!(descriptors_below(&path), 0);
}

#[test]
fn removal_waits_for_requests_in_flight() {
    let folder = Scratch::new();
    let fs = collection();
    let path = folder.make("gone");
    fs.add_share(c"gone", share(&path)).unwrap();
    let top = fs.walk("gone").unwrap().node;
    let node = fs.make_file(top, c"file", b"x").unwrap().node;
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    let in_flight = fs.file(handle).unwrap();
    assert_eq!(code(&fs.remove_share(c"gone", Duration::from_millis(20))), libc::ETIMEDOUT);
    assert_eq!(code(&fs.file(handle).map(drop)), libc::EBADF, "it is gone for all others");

    fs.add_share(c"gone", share(&path)).unwrap();
    let node = fs.walk("gone/file").unwrap().node;
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    let second = fs.file(handle).unwrap();
    let removed = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            fs.remove_share(c"gone", SOON).unwrap();
            removed.store(true, Ordering::SeqCst);
        });
        while code(&fs.file(handle).map(drop)) == 0 {
            thread::yield_now();
        }
        assert!(!removed.load(Ordering::SeqCst));
        drop(second);
        waiter.join().unwrap();
    });
    assert!(removed.load(Ordering::SeqCst));
    assert_eq!(descriptors_below(&path), 1, "that of the first removal is still in flight");
    drop(in_flight);
    assert_eq!(descriptors_below(&path), 0);
}

#[test]
fn removed_share_can_be_unmounted_while_the_guest_works_in_it() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    private_mounts();
    let path = folder.make("volume");
    let fs = collection();
    for round in 0..20 {
        mount_tmpfs(&path);
        fs::create_dir(path.join("nested")).unwrap();
        mount_tmpfs(&path.join("nested"));
        fs.add_share(c"volume", share(&path)).unwrap();
        let done = AtomicBool::new(false);
        let work = AtomicUsize::new(0);
        thread::scope(|scope| {
            for worker in 0..2 {
                let (fs, done, work) = (&fs, &done, &work);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let _ = churn(fs, worker);
                        work.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // Whatever fails here, the workers end.
            let _done = SetOnDrop(&done);
            while work.load(Ordering::Relaxed) < 50 {
                thread::yield_now();
            }
            assert_eq!(unmount(&path.join("nested")), libc::EBUSY);
            fs.remove_share(c"volume", SOON).unwrap();
            // The workers go on trying; nothing of them is left in the mounts.
            assert_eq!(descriptors_below(&path), 0, "round {round}");
            unmount_released(&path.join("nested"), &format!("nested, round {round}"));
            unmount_released(&path, &format!("round {round}"));
        });
        assert_eq!(fs.levels(), (0, 0));
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a guest does in a share: much of it at the same time, and it never closes anything.
fn churn(fs: &Passthrough, worker: usize) -> io::Result<()> {
    let top = fs.lookup(&root(), ROOT_NODE, c"volume")?.node;
    let name = c(format!("file-{worker}"));
    let file = fs.make_file(top, &name, b"data")?;
    fs.open_node(file.node, libc::O_RDWR)?;
    let nested = fs.lookup(&root(), top, c"nested")?;
    assert!(nested.submount);
    fs.make_file(nested.node, &name, b"data")?;
    fs.setxattr(&root(), file.node, c"security.a", b"1", 0, false)?;
    let listing = fs.opendir(&root(), nested.node, 0)?;
    fs.readdir(listing.handle, 0, &mut |_| false)?;
    fs.mkdir(&user(5, 5), top, &c(format!("dir-{worker}")), new(0o755))?;
    Ok(())
}
