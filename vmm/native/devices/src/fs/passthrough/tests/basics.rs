//! Each operation once, on real folders.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use super::super::CachePolicy;
use super::fixture::*;
use crate::fs::backend::{AttributeChange, HostFs, NewTime, ROOT_NODE, SessionOptions};

#[test]
fn file_is_created_written_read_and_removed() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let entry = fs.make_file(ROOT_NODE, c"a", b"hello").unwrap();
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"hello");
    assert_eq!(fs.read_node(entry.node).unwrap(), b"hello");
    assert_eq!(fs.lookup(&root(), ROOT_NODE, c"a").unwrap().node, entry.node);
    fs.unlink(&root(), ROOT_NODE, c"a").unwrap();
    assert_eq!(code(&fs.lookup(&root(), ROOT_NODE, c"a")), libc::ENOENT);
    assert_eq!(fs.read_node(entry.node).unwrap(), b"hello", "an unlinked file stays while it is known");
    fs.forget(entry.node, 2);
    assert_eq!(code(&fs.attributes(entry.node, None)), libc::ESTALE);
    assert_eq!(fs.levels(), (1, 0));
}

#[test]
fn create_of_an_existing_file_opens_it_unless_exclusive() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    fs::write(folder.path().join("a"), "old").unwrap();
    let flags = (libc::O_RDWR | libc::O_CREAT).cast_unsigned();
    let (entry, opened) = fs.create(&root(), ROOT_NODE, c"a", flags, new(0o600)).unwrap();
    assert_eq!(fs.read_at(opened.handle, 0, 10).unwrap(), b"old");
    assert_eq!(entry.attributes.mode & 0o777, 0o644);
    let exclusive = flags | libc::O_EXCL.cast_unsigned();
    assert_eq!(code(&fs.create(&root(), ROOT_NODE, c"a", exclusive, new(0o600))), libc::EEXIST);
    let truncating = flags | libc::O_TRUNC.cast_unsigned();
    fs.create(&root(), ROOT_NODE, c"a", truncating, new(0o600)).unwrap();
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"");
}

#[test]
fn attributes_are_changed_one_by_one_and_together() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let node = fs.make_file(ROOT_NODE, c"a", b"0123456789").unwrap().node;
    let change = AttributeChange {
        mode: Some(0o640),
        uid: Some(7),
        size: Some(4),
        mtime: Some(NewTime::At(1000, 5)),
        ..AttributeChange::default()
    };
    let (attributes, timeout) = fs.set_attributes(&root(), node, None, &change).unwrap();
    assert_eq!(attributes.mode, libc::S_IFREG | 0o640);
    assert_eq!((attributes.uid, attributes.gid, attributes.size), (7, 0, 4));
    assert_eq!(attributes.mtime, (1000, 5));
    assert!(attributes.atime.0 > 1000);
    assert_eq!(timeout, Duration::from_secs(1));
    assert!(attributes.btime.is_some());
    for bad in [
        AttributeChange { uid: Some(u32::MAX), ..AttributeChange::default() },
        AttributeChange { size: Some(u64::MAX), ..AttributeChange::default() },
        AttributeChange { atime: Some(NewTime::At(0, 1_073_741_822)), ..AttributeChange::default() },
    ] {
        assert_eq!(code(&fs.set_attributes(&root(), node, None, &bad)), libc::EINVAL);
    }
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    let grow = AttributeChange { size: Some(100), ..AttributeChange::default() };
    assert_eq!(fs.set_attributes(&root(), node, Some(handle), &grow).unwrap().0.size, 100);
    let other = fs.make_file(ROOT_NODE, c"b", b"").unwrap().node;
    assert_eq!(fs.set_attributes(&root(), other, Some(handle), &grow).unwrap().0.size, 100);
    assert_eq!(fs::metadata(folder.path().join("b")).unwrap().len(), 100, "a foreign handle is ignored");
}

#[test]
fn symlinks_have_attributes_and_names_of_their_own() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    fs::write(folder.path().join("target"), "x").unwrap();
    let link = fs.symlink(&root(), ROOT_NODE, c"link", c"target").unwrap();
    assert_eq!(fs.readlink(link.node).unwrap(), b"target");
    assert_eq!(link.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
    let change =
        AttributeChange { uid: Some(5), mtime: Some(NewTime::At(1, 2)), ..AttributeChange::default() };
    fs.set_attributes(&root(), link.node, None, &change).unwrap();
    let own = fs::symlink_metadata(folder.path().join("link")).unwrap();
    assert_eq!((own.uid(), own.mtime()), (5, 1));
    assert_eq!(fs::metadata(folder.path().join("target")).unwrap().uid(), 0);
    let chmod = AttributeChange { mode: Some(0o600), ..AttributeChange::default() };
    assert_eq!(code(&fs.set_attributes(&root(), link.node, None, &chmod)), libc::EOPNOTSUPP);
    let size = AttributeChange { size: Some(0), ..AttributeChange::default() };
    assert_eq!(code(&fs.set_attributes(&root(), link.node, None, &size)), libc::EINVAL);
    assert_eq!(code(&fs.open_node(link.node, libc::O_RDONLY)), libc::ELOOP);
    fs.link(&root(), link.node, ROOT_NODE, c"second").unwrap();
    assert_eq!(fs::read_link(folder.path().join("second")).unwrap().to_str(), Some("target"));
    fs.setxattr(&root(), link.node, c"trusted.a", b"1", 0, false).unwrap();
    let mut value = [0; 8];
    assert_eq!(fs.getxattr(link.node, c"trusted.a", &mut value).unwrap(), 1);
    let target = fs.walk("target").unwrap().node;
    assert_eq!(code(&fs.getxattr(target, c"trusted.a", &mut value)), libc::ENODATA);
}

#[test]
fn xattrs_are_set_listed_read_and_removed() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let node = fs.make_file(ROOT_NODE, c"a", b"").unwrap().node;
    fs.setxattr(&root(), node, c"user.one", b"first", 0, false).unwrap();
    let again = fs.setxattr(&root(), node, c"user.one", b"x", libc::XATTR_CREATE.cast_unsigned(), false);
    assert_eq!(code(&again), libc::EEXIST);
    let mut value = [0; 16];
    assert_eq!(fs.getxattr(node, c"user.one", &mut []).unwrap(), 5);
    assert_eq!(fs.getxattr(node, c"user.one", &mut value).unwrap(), 5);
    assert_eq!(&value[..5], b"first");
    assert_eq!(code(&fs.getxattr(node, c"user.one", &mut value[..2])), libc::ERANGE);
    assert_eq!(fs.listxattr(node, &mut value).unwrap(), 9);
    assert_eq!(&value[..9], b"user.one\0");
    fs.removexattr(&root(), node, c"user.one").unwrap();
    assert_eq!(code(&fs.getxattr(node, c"user.one", &mut value)), libc::ENODATA);
    assert_eq!(code(&fs.getxattr(node, c"system.nfs4_acl", &mut value)), libc::EOPNOTSUPP);
    assert_eq!(code(&fs.setxattr(&root(), node, c"user.b", &[0; 65537], 0, false)), libc::E2BIG);
}

#[test]
fn acl_names_exist_only_if_the_guest_enforces_acls() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let node = fs.make_file(ROOT_NODE, c"a", b"").unwrap().node;
    let mut value = [0; 64];
    assert_eq!(code(&fs.getxattr(node, c"system.posix_acl_access", &mut value)), libc::ENODATA);
    fs.begin(SessionOptions::default());
    let node = fs.walk("a").unwrap().node;
    assert_eq!(code(&fs.getxattr(node, c"system.posix_acl_access", &mut value)), libc::ENODATA);
    let acl = fs.setxattr(&root(), node, c"system.posix_acl_access", &value, 0, false);
    assert_eq!(code(&acl), libc::EOPNOTSUPP);
}

#[test]
fn directory_listing_goes_on_from_any_entry() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    for number in 0..2000 {
        fs::write(folder.path().join(format!("file-with-a-longer-name-{number}")), "").unwrap();
    }
    let all = fs.list(ROOT_NODE).unwrap();
    assert_eq!(all.len(), 2002);
    let opened = fs.opendir(&root(), ROOT_NODE, 0).unwrap();
    // In pieces of seven; each piece twice, the second time after a jump elsewhere.
    let mut offset = 0;
    let mut pieces = Vec::new();
    loop {
        let read = |offset: u64| {
            let mut piece = Vec::new();
            fs.readdir(opened.handle, offset, &mut |entry| {
                if piece.len() == 7 {
                    return false;
                }
                piece.push((entry.name.to_str().unwrap().to_owned(), entry.next_offset));
                true
            })
            .unwrap();
            piece
        };
        let piece = read(offset);
        if pieces.len() % 70 == 0 {
            read(all[1500].1);
            assert_eq!(read(offset), piece);
        }
        let Some(last) = piece.last() else { break };
        offset = last.1;
        pieces.extend(piece);
    }
    assert_eq!(pieces, all);
    fs.releasedir(opened.handle).unwrap();
}

#[test]
fn listings_beyond_the_buffer_budget_are_complete_too() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    for number in 0..600 {
        fs::write(folder.path().join(format!("file-with-a-longer-name-{number}")), "").unwrap();
    }
    let all = fs.list(ROOT_NODE).unwrap();
    let handles: Vec<_> = (0..80).map(|_| fs.opendir(&root(), ROOT_NODE, 0).unwrap().handle).collect();
    let mut seen = vec![Vec::new(); handles.len()];
    // All at once, a few names each time, so that every listing holds a buffer or would like to.
    for _ in 0..all.len() {
        for (handle, names) in handles.iter().zip(&mut seen) {
            let offset = names.last().map_or(0, |(_, next): &(String, u64)| *next);
            let mut room = 13;
            fs.readdir(*handle, offset, &mut |entry| {
                let taken = room > 0;
                if taken {
                    room -= 1;
                    names.push((entry.name.to_str().unwrap().to_owned(), entry.next_offset));
                }
                taken
            })
            .unwrap();
        }
        if seen.iter().all(|names| names.len() == all.len()) {
            break;
        }
    }
    assert!(seen.iter().all(|names| *names == all));
    assert_eq!(fs.directory_buffers.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn readers_of_one_listing_do_not_disturb_each_other() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    for number in 0..500 {
        fs::write(folder.path().join(format!("file-with-a-longer-name-{number}")), "").unwrap();
    }
    let all = fs.list(ROOT_NODE).unwrap();
    let handle = fs.opendir(&root(), ROOT_NODE, 0).unwrap().handle;
    let (fs, all) = (&fs, &all);
    std::thread::scope(|scope| {
        for step in [1, 3, 50] {
            scope.spawn(move || {
                let mut seen: Vec<(String, u64)> = Vec::new();
                while seen.len() < all.len() {
                    let offset = seen.last().map_or(0, |(_, next)| *next);
                    let mut room = step;
                    fs.readdir(handle, offset, &mut |entry| {
                        let taken = room > 0;
                        if taken {
                            room -= 1;
                            seen.push((entry.name.to_str().unwrap().to_owned(), entry.next_offset));
                        }
                        taken
                    })
                    .unwrap();
                }
                assert_eq!(&seen, all);
            });
        }
    });
}

#[test]
fn parent_of_the_share_shows_no_inode_number() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let opened = fs.opendir(&root(), ROOT_NODE, 0).unwrap();
    let own = fs::metadata(folder.path()).unwrap().ino();
    let mut dots = Vec::new();
    fs.readdir(opened.handle, 0, &mut |entry| {
        dots.push(entry.ino);
        true
    })
    .unwrap();
    assert_eq!(dots, [own, own]);
}

#[test]
fn holes_are_found_punched_and_copied() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let node = fs.make_file(ROOT_NODE, c"a", &[1; 65536]).unwrap().node;
    let a = fs.open_node(node, libc::O_RDWR).unwrap();
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned();
    fs.fallocate(&root(), a, punch, 8192, 8192).unwrap();
    assert_eq!(fs.lseek(a, 0, libc::SEEK_HOLE.cast_unsigned()).unwrap(), 8192);
    assert_eq!(fs.lseek(a, 8192, libc::SEEK_DATA.cast_unsigned()).unwrap(), 16384);
    assert_eq!(code(&fs.lseek(a, 0, libc::SEEK_SET.cast_unsigned())), libc::EINVAL);
    assert_eq!(code(&fs.lseek(a, 1 << 20, libc::SEEK_DATA.cast_unsigned())), libc::ENXIO);
    assert_eq!(code(&fs.fallocate(&root(), a, 0, u64::MAX, 1)), libc::EINVAL);
    let (_, b) = fs.create(&root(), ROOT_NODE, c"b", libc::O_RDWR.cast_unsigned(), new(0o600)).unwrap();
    assert_eq!(fs.copy_file_range(&root(), (a, 4096), (b.handle, 100), 8192).unwrap(), 8192);
    let copied = fs.read_at(b.handle, 0, 65536).unwrap();
    assert_eq!(copied.len(), 8292);
    assert_eq!((&copied[..100], &copied[100..4196]), (&[0; 100][..], &[1; 4096][..]));
    assert!(copied[4196..].iter().all(|byte| *byte == 0));
}

#[test]
fn nameless_file_can_get_a_name() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let (entry, opened) = fs.tmpfile(&root(), ROOT_NODE, libc::O_RDWR.cast_unsigned(), new(0o640)).unwrap();
    assert_eq!(entry.attributes.nlink, 0);
    fs.write_at(opened.handle, 0, b"data").unwrap();
    let linked = fs.link(&root(), entry.node, ROOT_NODE, c"named").unwrap();
    assert_eq!((linked.node, linked.attributes.nlink), (entry.node, 1));
    assert_eq!(fs::read(folder.path().join("named")).unwrap(), b"data");
    let flags = (libc::O_RDWR | libc::O_EXCL).cast_unsigned();
    let (entry, _) = fs.tmpfile(&root(), ROOT_NODE, flags, new(0o640)).unwrap();
    assert_eq!(code(&fs.link(&root(), entry.node, ROOT_NODE, c"never")), libc::ENOENT);
}

#[test]
fn rename_flags_are_honoured() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    let fs = serve(folder.path());
    fs::write(folder.path().join("a"), "a").unwrap();
    fs::write(folder.path().join("b"), "b").unwrap();
    let rename = |from, to, flags| fs.rename(&root(), (ROOT_NODE, from), (ROOT_NODE, to), flags);
    assert_eq!(code(&rename(c"a", c"b", libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename(c"a", c"b", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"b");
    rename(c"a", c"c", libc::RENAME_WHITEOUT).unwrap();
    let whiteout = fs.walk("a").unwrap().attributes;
    assert_eq!(whiteout.mode & libc::S_IFMT, libc::S_IFCHR);
    assert_eq!(code(&rename(c"a", c"c", 1 << 20)), libc::EINVAL);
    rename(c"b", c"c", 0).unwrap();
    assert_eq!(fs::read(folder.path().join("c")).unwrap(), b"a");
}

#[test]
fn cache_policies_are_virtiofsds() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "").unwrap();
    for (policy, seconds, keep) in
        [(CachePolicy::None, 0, false), (CachePolicy::Auto, 1, false), (CachePolicy::Always, 86400, true)]
    {
        let fs = serve_cached(folder.path(), policy);
        let entry = fs.walk("a").unwrap();
        assert_eq!(entry.entry_timeout, Duration::from_secs(seconds));
        assert_eq!(entry.attributes_timeout, Duration::from_secs(seconds));
        assert_eq!(fs.absence_timeout(ROOT_NODE), Duration::from_secs(seconds.min(1)));
        let opened = fs.open(&root(), entry.node, 0, false).unwrap();
        assert_eq!((opened.keep_cache, opened.direct_io, opened.no_flush), (keep, false, true));
        assert_eq!(fs.opendir(&root(), ROOT_NODE, 0).unwrap().cache_dir, keep);
        fs.begin(SessionOptions { direct_io_mmap: true, ..SessionOptions::default() });
        let entry = fs.walk("a").unwrap();
        let opened = fs.open(&root(), entry.node, 0, false).unwrap();
        assert_eq!(opened.direct_io, policy == CachePolicy::None);
    }
}

#[test]
fn writeback_opens_for_reading_as_well() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    fs.begin(SessionOptions { writeback: true, ..SessionOptions::default() });
    let node = fs.make_file(ROOT_NODE, c"a", b"abc").unwrap().node;
    let handle = fs.open_node(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    assert_eq!(fs.read_at(handle, 0, 3).unwrap(), b"abc");
    fs.write_at(handle, 1, b"X").unwrap();
    assert_eq!(fs.read_node(node).unwrap(), b"aXc");
}

#[test]
fn readonly_share_refuses_everything_that_writes() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "a").unwrap();
    let fs = serve_with(folder.path(), |share| share.readonly = true);
    let node = fs.walk("a").unwrap().node;
    let flags = |flags: i32| flags.cast_unsigned();
    let root_change = AttributeChange { mode: Some(0), ..AttributeChange::default() };
    let times = AttributeChange { atime: Some(NewTime::Now), ..AttributeChange::default() };
    let all = [
        code(&fs.set_attributes(&root(), node, None, &root_change)),
        code(&fs.set_attributes(&root(), node, None, &times)),
        code(&fs.access(&root(), node, 2)),
        code(&fs.mknod(&root(), ROOT_NODE, c"n", new(libc::S_IFREG))),
        code(&fs.mkdir(&root(), ROOT_NODE, c"n", new(0o755))),
        code(&fs.symlink(&root(), ROOT_NODE, c"n", c"a")),
        code(&fs.link(&root(), node, ROOT_NODE, c"n")),
        code(&fs.unlink(&root(), ROOT_NODE, c"a")),
        code(&fs.rmdir(&root(), ROOT_NODE, c"a")),
        code(&fs.rename(&root(), (ROOT_NODE, c"a"), (ROOT_NODE, c"n"), 0)),
        code(&fs.open_node(node, libc::O_WRONLY)),
        code(&fs.open_node(node, libc::O_RDWR)),
        code(&fs.open_node(node, libc::O_RDONLY | libc::O_TRUNC)),
        code(&fs.create(&root(), ROOT_NODE, c"n", flags(libc::O_RDWR), new(0o644))),
        code(&fs.tmpfile(&root(), ROOT_NODE, flags(libc::O_RDWR), new(0o644))),
        code(&fs.setxattr(&root(), node, c"user.a", b"", 0, false)),
        code(&fs.removexattr(&root(), node, c"user.a")),
    ];
    assert_eq!(all, [libc::EROFS; 17]);
    let handle = fs.open_node(node, libc::O_RDONLY).unwrap();
    assert_eq!(code(&fs.fallocate(&root(), handle, 0, 0, 10)), libc::EBADF);
    assert_eq!(code(&fs.write_at(handle, 0, b"x")), libc::EBADF);
    assert_eq!(code(&fs.copy_file_range(&root(), (handle, 0), (handle, 1), 1)), libc::EBADF);
    assert_eq!(fs.names(ROOT_NODE), ["a"]);
    assert_eq!(fs.read_node(node).unwrap(), b"a");
    fs.access(&root(), node, 4).unwrap();
    fs.statfs(node).unwrap();
}

#[test]
fn access_follows_the_permission_bits() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let node = fs.make_file(ROOT_NODE, c"a", b"").unwrap().node;
    fs::set_permissions(folder.path().join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    fs.access(&root(), node, 6).unwrap();
    assert_eq!(code(&fs.access(&root(), node, 1)), libc::EACCES);
    assert_eq!(code(&fs.access(&user(77, 77), node, 4)), libc::EACCES);
    fs.access(&user(77, fs::metadata(folder.path()).unwrap().gid()), node, 4).unwrap();
    fs.access(&user(77, 77), node, 0).unwrap();
}

#[test]
fn statistics_and_syncs_are_the_hosts() {
    let folder = Scratch::new();
    let fs = serve(folder.path());
    let statistics = fs.statfs(ROOT_NODE).unwrap();
    assert!(statistics.blocks > 0 && statistics.namelen == 255);
    let node = fs.make_file(ROOT_NODE, c"a", b"x").unwrap().node;
    let handle = fs.open_node(node, libc::O_RDWR).unwrap();
    fs.fsync(handle, true).unwrap();
    fs.fsync(handle, false).unwrap();
    fs.flush(handle, 1).unwrap();
    let directory = fs.opendir(&root(), ROOT_NODE, 0).unwrap().handle;
    fs.fsyncdir(directory, false).unwrap();
    assert_eq!(code(&fs.file(directory).map(drop)), libc::EISDIR);
    assert_eq!(code(&fs.readdir(handle, 0, &mut |_| true)), libc::ENOTDIR);
    assert_eq!(code(&fs.release(directory + 100)), libc::EBADF);
}
