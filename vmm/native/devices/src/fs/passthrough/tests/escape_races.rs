//! Ways out of the share that exist for an instant: somebody on the host changes what the guest walks on.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::Passthrough;
use super::fixture::*;
use crate::fs::backend::{AttributeChange, HostFs, NewTime, NodeId, ROOT_NODE};

/// Turns of the guest; each is some ten system calls, and the other side is as fast.
const TURNS: usize = 1000;

fn exchange(a: &Path, b: &Path) {
    let (a, b) = (c(a), c(b));
    let (here, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    // SAFETY: both are C strings.
    let done = unsafe { libc::syscall(libc::SYS_renameat2, here, a.as_ptr(), here, b.as_ptr(), flags) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Runs `guest` often, while `host` runs all the time.
fn race(host: impl Fn() + Sync, guest: impl Fn(usize) + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                host();
            }
        });
        let guests: Vec<_> = (0..2)
            .map(|number| {
                let guest = &guest;
                scope.spawn(move || (0..TURNS).for_each(|turn| guest(turn * 2 + number)))
            })
            .collect();
        let outcomes: Vec<_> = guests.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
}

/// Does what it can in whatever `parent/name` is just now.
fn touch(fs: &Passthrough, parent: NodeId, name: &CStr, turn: usize) -> bool {
    let Ok(entry) = fs.lookup(&root(), parent, name) else { return false };
    let fresh = c(format!("fresh-{turn}"));
    let read = fs.lookup(&root(), entry.node, c"marker").and_then(|marker| fs.read_node(marker.node));
    if let Ok(data) = &read {
        assert_eq!(data, b"inside");
    }
    let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC).cast_unsigned();
    if let Ok((_, opened)) = fs.create(&root(), entry.node, &fresh, flags, new(0o666)) {
        let _ = fs.write_at(opened.handle, 0, b"written");
        let _ = fs.release(opened.handle);
    }
    let directory = c(format!("directory-{turn}"));
    let _ = fs.mkdir(&user(7, 7), entry.node, &directory, new(0o777));
    let _ = fs.rename(&root(), (entry.node, &fresh), (entry.node, c"renamed"), 0);
    let change = AttributeChange { atime: Some(NewTime::At(1, 1)), ..AttributeChange::default() };
    let _ = fs.set_attributes(&root(), entry.node, None, &change);
    let _ = fs.rmdir(&root(), entry.node, &directory);
    let _ = fs.unlink(&root(), entry.node, c"renamed");
    read.is_ok()
}

#[test]
fn directory_that_flips_with_a_symlink_to_the_outside() {
    let outside = Outside::new();
    let directory = outside.share.join("dir");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("marker"), "inside").unwrap();
    let evil = outside.share.join("evil");
    symlink(&outside.folder, &evil).unwrap();
    let fs = serve(&outside.share);
    let reads = std::sync::atomic::AtomicUsize::new(0);
    race(
        || exchange(&directory, &evil),
        |turn| {
            reads.fetch_add(usize::from(touch(&fs, ROOT_NODE, c"dir", turn)), Ordering::Relaxed);
        },
    );
    assert!(reads.load(Ordering::Relaxed) > 0, "the guest did see the directory now and then");
    outside.assert_untouched();
}

#[test]
fn file_that_flips_with_a_symlink_to_the_marker() {
    let outside = Outside::new();
    let file = outside.share.join("file");
    fs::write(&file, "inside").unwrap();
    let evil = outside.share.join("evil");
    symlink("../outside/marker", &evil).unwrap();
    let fs = serve(&outside.share);
    let flags = (libc::O_RDWR | libc::O_CREAT).cast_unsigned();
    race(
        || exchange(&file, &evil),
        |_| {
            if let Ok((entry, opened)) = fs.create(&root(), ROOT_NODE, c"file", flags, new(0o666)) {
                assert_eq!(fs.read_at(opened.handle, 0, 64).unwrap(), b"inside");
                fs.write_at(opened.handle, 0, b"inside").unwrap();
                fs.release(opened.handle).unwrap();
                fs.forget(entry.node, 1);
            }
            let entry = fs.lookup(&root(), ROOT_NODE, c"file").unwrap();
            let size = AttributeChange { size: Some(6), ..AttributeChange::default() };
            let _ = fs.set_attributes(&root(), entry.node, None, &size);
            let times = AttributeChange { mtime: Some(NewTime::Now), ..AttributeChange::default() };
            fs.set_attributes(&root(), entry.node, None, &times).unwrap();
            let _ = fs.setxattr(&root(), entry.node, c"user.a", b"1", 0, false);
            fs.forget(entry.node, 1);
        },
    );
    outside.assert_untouched();
}

#[test]
fn directory_that_leaves_the_share_and_comes_back() {
    let outside = Outside::new();
    let directory = outside.share.join("a/dir");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("marker"), "inside").unwrap();
    // It moves next to a marker that is not the guest's.
    let away = outside.scratch.make("away");
    fs::write(away.join("marker"), SECRET).unwrap();
    let fs = serve(&outside.share);
    let held = fs.walk("a/dir").unwrap().node;
    let above = fs.walk("a").unwrap().node;
    race(
        || {
            fs::rename(&directory, away.join("dir")).unwrap();
            fs::rename(away.join("dir"), &directory).unwrap();
        },
        |turn| {
            touch(&fs, above, c"dir", turn);
            for name in [c"..", c"../marker", c"../../outside/marker"] {
                assert_eq!(code(&fs.lookup(&root(), held, name)), libc::EINVAL);
            }
            let marker = fs.lookup(&root(), held, c"marker").unwrap();
            assert_eq!(fs.read_node(marker.node).unwrap(), b"inside");
            fs.forget(marker.node, 1);
        },
    );
    assert_eq!(fs::read(away.join("marker")).unwrap(), SECRET);
    outside.assert_untouched();
}

#[test]
fn lookups_and_forgets_of_one_file_at_once_lose_no_reference() {
    let folder = Scratch::new();
    fs::write(folder.path().join("file"), "x").unwrap();
    fs::create_dir(folder.path().join("dir")).unwrap();
    let fs = serve(folder.path());
    let flip = (folder.path().join("file"), folder.path().join("dir"));
    race(
        || exchange(&flip.0, &flip.1),
        |_| {
            let entry = fs.lookup(&root(), ROOT_NODE, c"file").unwrap();
            // What was looked up is known until it is forgotten, whatever the others forget meanwhile.
            let now = fs.attributes(entry.node, None).unwrap().0;
            assert_eq!(now.ino, entry.attributes.ino);
            assert_eq!(now.mode, entry.attributes.mode);
            fs.forget(entry.node, 1);
        },
    );
    assert_eq!(fs.levels(), (1, 0));
    assert_eq!(fs.metrics().snapshot().last(), Some(&("bad_forgets", 0)));
}
