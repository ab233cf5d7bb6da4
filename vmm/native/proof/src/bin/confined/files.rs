//! Everything that a guest asks of a share, in the names of several of its users; and the device around it.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use strato_devices::fs::backend::{
    AttributeChange, Caller, Creation, HostFs, NewTime, ROOT_NODE, SessionOptions,
};
use strato_devices::fs::passthrough::{Passthrough, PassthroughConfig, Root, ShareConfig};
use strato_devices::fs::{Fs, FsConfig};
use strato_jail::Role;
use strato_virtio::thread::spawn;

use super::devices::Driver;

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1, supplementary_gid: None };
const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 1, supplementary_gid: Some(7) };

fn passthrough(folder: &Path) -> Passthrough {
    let directory = OwnedFd::from(File::open(folder).unwrap());
    let root = Root::Directory(ShareConfig::new(directory));
    Passthrough::new(PassthroughConfig::new(root).unwrap()).unwrap()
}

fn new(mode: u32) -> Creation {
    Creation { mode, umask: 0o027, rdev: 0 }
}

/// Calls of the host half, on a thread of the role.
fn host_half(role: Role, folder: &Path) {
    let fs = passthrough(folder);
    let options = SessionOptions { kill_privileges: true, dont_mask: true, ..SessionOptions::default() };
    fs.begin(options);
    let thread = spawn(Some(role), "files", move || {
        fs.prepare_thread().unwrap();
        names(&fs);
        contents(&fs);
        attributes(&fs);
    });
    thread.unwrap().join().unwrap();
}

fn names(fs: &Passthrough) {
    let directory = fs.mkdir(&USER, ROOT_NODE, c"dir", new(libc::S_IFDIR | 0o755)).unwrap().node;
    fs.mknod(&ROOT, directory, c"node", Creation { rdev: 0x103, ..new(libc::S_IFCHR | 0o600) }).unwrap();
    let link = fs.symlink(&USER, directory, c"link", c"target").unwrap().node;
    assert_eq!(fs.readlink(link).unwrap(), b"target");
    let (file, opened) =
        fs.create(&USER, directory, c"file", libc::O_RDWR as u32, new(libc::S_IFREG | 0o640)).unwrap();
    fs.release(opened.handle).unwrap();
    fs.link(&ROOT, file.node, directory, c"second").unwrap();
    fs.rename(&ROOT, (directory, c"second"), (ROOT_NODE, c"moved"), 0).unwrap();
    fs.unlink(&ROOT, ROOT_NODE, c"moved").unwrap();
    assert!(fs.lookup(&ROOT, ROOT_NODE, c"moved").is_err());
    let listing = fs.opendir(&ROOT, directory, libc::O_RDONLY as u32).unwrap().handle;
    let mut seen = 0;
    let mut count = |_: strato_devices::fs::backend::DirectoryEntry<'_>| {
        seen += 1;
        true
    };
    fs.readdir(listing, 0, &mut count).unwrap();
    assert_eq!(seen, 5);
    // From where it ended, so that the position has to be set.
    fs.readdir(listing, 1, &mut |_| true).unwrap();
    fs.fsyncdir(listing, false).unwrap();
    fs.releasedir(listing).unwrap();
}

fn contents(fs: &Passthrough) {
    let flags = libc::O_RDWR as u32;
    let create = |name: &CStr, caller: &Caller| {
        fs.create(caller, ROOT_NODE, name, flags, new(libc::S_IFREG | 0o644)).unwrap()
    };
    let (_, first) = create(c"first", &ROOT);
    let (_, second) = create(c"second", &USER);
    let file = fs.file(first.handle).unwrap();
    write(&file, b"some words");
    assert_eq!(fs.copy_file_range(&ROOT, (first.handle, 0), (second.handle, 0), 4).unwrap(), 4);
    fs.fallocate(&ROOT, first.handle, 0, 0, 1 << 16).unwrap();
    fs.lseek(first.handle, 0, libc::SEEK_HOLE as u32).unwrap();
    fs.fsync(first.handle, false).unwrap();
    fs.fsync(first.handle, true).unwrap();
    fs.flush(first.handle, 1).unwrap();
    fs.syncfs(ROOT_NODE).unwrap();
    fs.statfs(ROOT_NODE).unwrap();
    drop(file);
    fs.release(first.handle).unwrap();
    fs.release(second.handle).unwrap();
}

/// As the FUSE half moves data: to and from several places, and to the end of a file.
fn write(file: &impl AsFd, words: &[u8]) {
    let fd = file.as_fd().as_raw_fd();
    let pieces = [libc::iovec { iov_base: words.as_ptr().cast_mut().cast(), iov_len: words.len() }];
    // SAFETY: one piece of memory that lives and is as long as it says.
    assert_eq!(unsafe { libc::pwritev(fd, pieces.as_ptr(), 1, 0) }, words.len() as isize);
    // SAFETY: as above.
    let added = unsafe { libc::pwritev2(fd, pieces.as_ptr(), 1, 0, libc::RWF_APPEND) };
    assert_eq!(added, words.len() as isize);
    let mut room = vec![0u8; words.len()];
    let places = [libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() }];
    // SAFETY: one writable piece of memory that lives and is as long as it says.
    assert_eq!(unsafe { libc::preadv(fd, places.as_ptr(), 1, 0) }, words.len() as isize);
    assert_eq!(room, words);
}

fn attributes(fs: &Passthrough) {
    let node = fs.lookup(&ROOT, ROOT_NODE, c"first").unwrap().node;
    let change = |change: &AttributeChange| {
        fs.set_attributes(&ROOT, node, None, change).unwrap();
    };
    change(&AttributeChange { uid: Some(1000), gid: Some(1001), ..AttributeChange::default() });
    change(&AttributeChange { mode: Some(0o6755), ..AttributeChange::default() });
    change(&AttributeChange { mtime: Some(NewTime::At(1, 2)), ..AttributeChange::default() });
    // Clearing of set-id bits: without privileges for a while, and as a member of the file's group.
    change(&AttributeChange { size: Some(5), kill_privileges: true, ..AttributeChange::default() });
    change(&AttributeChange { mode: Some(0o2644), ..AttributeChange::default() });
    change(&AttributeChange { size: Some(4), kill_privileges: true, ..AttributeChange::default() });
    let opened = fs.open(&ROOT, node, libc::O_RDWR as u32, false).unwrap().handle;
    let shorter = AttributeChange { size: Some(3), ..AttributeChange::default() };
    fs.set_attributes(&ROOT, node, Some(opened), &shorter).unwrap();
    fs.release(opened).unwrap();
    fs.setxattr(&ROOT, node, c"user.a", b"value", 0, false).unwrap();
    let mut value = [0; 16];
    assert_eq!(fs.getxattr(node, c"user.a", &mut value).unwrap(), 5);
    assert_ne!(fs.listxattr(node, &mut [0; 64]).unwrap(), 0);
    fs.removexattr(&ROOT, node, c"user.a").unwrap();
}

// linux/include/uapi/linux/fuse.h
const FUSE_INIT: u32 = 26;
const FUSE_FORGET: u32 = 2;
const FUSE_GETATTR: u32 = 3;
const FUSE_HEADER: usize = 40;

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut raw = ((FUSE_HEADER + body.len()) as u32).to_le_bytes().to_vec();
    raw.extend_from_slice(&opcode.to_le_bytes());
    raw.extend_from_slice(&1u64.to_le_bytes());
    raw.extend_from_slice(&ROOT_NODE.to_le_bytes());
    raw.resize(FUSE_HEADER, 0);
    raw.extend_from_slice(body);
    raw
}

/// The device around it, with one thread in its pool.
fn device(folder: &Path) {
    let config = FsConfig { tag: "t".into(), threads: 1, ..FsConfig::default() };
    let fs = Fs::new(config, Arc::new(passthrough(folder))).unwrap();
    let mut driver = Driver::new("fs", Box::new(fs), 2, u64::MAX);
    let mut init = Vec::new();
    for word in [7u32, 38, 0, 0] {
        init.extend_from_slice(&word.to_le_bytes());
    }
    init.resize(64, 0);
    let answer = driver.ask(1, &message(FUSE_INIT, &init), 128);
    assert_eq!(answer[4..8], [0; 4], "{answer:?}");
    for _ in 0..50 {
        assert!(driver.ask(1, &message(FUSE_GETATTR, &[0; 16]), 256).len() > 16);
    }
    driver.ask(0, &message(FUSE_FORGET, &1u64.to_le_bytes()), 0);
    driver.end();
}

pub(crate) fn work(role: Role) {
    let folder = std::env::temp_dir().join(format!("strato-confined-{}-{role:?}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // Anybody's: what the guest's users may do is the guest's affair.
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    host_half(role, &folder);
    device(&folder);
    drop(OpenOptions::new().read(true).open(folder.join("first")).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}
