//! Locks on the host's files, as two guests with the same folder see each other's.

use std::fs;

use super::super::{Passthrough, PassthroughConfig, Root};
use super::fixture::*;
use crate::fs::backend::{HostFs, RecordLock};

fn guest(folder: &Scratch, remote_locks: bool) -> Passthrough {
    let root = Root::Directory(share(folder.path()));
    Passthrough::new(PassthroughConfig { remote_locks, ..PassthroughConfig::new(root).unwrap() }).unwrap()
}

fn lock(kind: i32, start: u64, end: u64) -> RecordLock {
    RecordLock { kind, start, end, pid: 9 }
}

const WHOLE: u64 = i64::MAX.unsigned_abs();

#[test]
fn locks_are_the_guests_own_unless_configured() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "").unwrap();
    let fs = guest(&folder, false);
    let handle = fs.open_node(fs.walk("a").unwrap().node, libc::O_RDWR).unwrap();
    assert!(!fs.remote_locks());
    assert_eq!(code(&fs.set_lock(handle, 1, lock(libc::F_WRLCK, 0, WHOLE), false)), libc::ENOSYS);
    assert_eq!(code(&fs.get_lock(handle, 1, lock(libc::F_WRLCK, 0, WHOLE))), libc::ENOSYS);
    assert_eq!(code(&fs.flock(handle, libc::LOCK_EX, false)), libc::ENOSYS);
}

#[test]
fn record_locks_belong_to_file_and_owner() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "").unwrap();
    let (one, two) = (guest(&folder, true), guest(&folder, true));
    let opened = one.open(&root(), one.walk("a").unwrap().node, 2, false).unwrap();
    assert!(!opened.no_flush, "the close is what ends the locks");
    let a = opened.handle;
    let again = one.open_node(one.walk("a").unwrap().node, libc::O_RDWR).unwrap();
    let b = two.open_node(two.walk("a").unwrap().node, libc::O_RDWR).unwrap();
    one.set_lock(a, 1, lock(libc::F_WRLCK, 10, 19), false).unwrap();
    one.set_lock(again, 1, lock(libc::F_WRLCK, 15, 30), true).unwrap();
    for (fs, handle, owner) in [(&one, again, 2), (&two, b, 1)] {
        let wanted = lock(libc::F_RDLCK, 0, WHOLE);
        assert_eq!(code(&fs.set_lock(handle, owner, wanted, false)), libc::EAGAIN);
        assert_eq!(code(&fs.set_lock(handle, owner, wanted, true)), libc::EOPNOTSUPP);
        let found = fs.get_lock(handle, owner, wanted).unwrap();
        assert_eq!((found.kind, found.start, found.end, found.pid), (libc::F_WRLCK, 10, 30, 0));
        assert_eq!(fs.get_lock(handle, owner, lock(libc::F_RDLCK, 31, 40)).unwrap().kind, libc::F_UNLCK);
    }
    one.set_lock(a, 1, lock(libc::F_UNLCK, 0, 14), false).unwrap();
    two.set_lock(b, 1, lock(libc::F_WRLCK, 0, 14), false).unwrap();
    one.flush(again, 1).unwrap();
    two.set_lock(b, 1, lock(libc::F_WRLCK, 0, WHOLE), false).unwrap();
    for bad in [lock(7, 0, 1), lock(libc::F_RDLCK, 2, 1), lock(libc::F_RDLCK, u64::MAX, u64::MAX)] {
        assert_eq!(code(&one.set_lock(a, 1, bad, false)), libc::EINVAL);
    }
    two.end();
    one.set_lock(a, 1, lock(libc::F_WRLCK, 0, WHOLE), false).unwrap();
}

#[test]
fn whole_file_locks_belong_to_the_handle() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "").unwrap();
    let fs = guest(&folder, true);
    let node = fs.walk("a").unwrap().node;
    let (a, b) = (fs.open_node(node, libc::O_RDONLY).unwrap(), fs.open_node(node, libc::O_RDONLY).unwrap());
    fs.flock(a, libc::LOCK_EX, true).unwrap();
    assert_eq!(code(&fs.flock(b, libc::LOCK_SH, false)), libc::EAGAIN);
    assert_eq!(code(&fs.flock(b, libc::LOCK_SH, true)), libc::EOPNOTSUPP);
    assert_eq!(code(&fs.flock(b, 77, false)), libc::EINVAL);
    fs.release(a).unwrap();
    fs.flock(b, libc::LOCK_SH, false).unwrap();
    fs.flock(b, libc::LOCK_UN, false).unwrap();
}
