//! Files mapped into a window, by a guest that sees it.
#![allow(unsafe_code, reason = "tests")]

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use strato_virtio::SaveObstacle;
use strato_virtio::record::{RecordWriter, kind};

use super::super::backend::ROOT_NODE as ROOT;
use super::super::passthrough::ShareConfig;
use super::super::window::{ReservedWindow, page_size};
use super::guest::{ANSWER, Body, Guest, LINUX_FLAGS, Payload, REQUEST, REQUESTS, Setup};

const MIB: u64 = 1 << 20;
const LENGTH: u64 = 8 * MIB;
/// Where the guest would find the window: far from its memory.
const WINDOW_GUEST_ADDR: u64 = 1 << 36;
const READ: u64 = 2;
const WRITE: u64 = 1;
const INIT: u32 = 26;
const SETUPMAPPING: u32 = 48;
const REMOVEMAPPING: u32 = 49;
const ATTR_DAX: u32 = 2;

fn scratch() -> File {
    // SAFETY: the name is a literal with a terminator.
    let raw = unsafe { libc::memfd_create(c"peek".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(raw >= 0);
    // SAFETY: memfd_create has just made this descriptor for us.
    unsafe { File::from_raw_fd(raw) }
}

/// What is in the window, if one may read there. The kernel reads, so that a fault is an error.
pub(super) fn peek(window: &ReservedWindow, at: u64, len: usize) -> Option<Vec<u8>> {
    let file = scratch();
    let address = std::ptr::without_provenance((window.host_addr() + at) as usize);
    // SAFETY: the kernel reads from the address, or does not.
    let done = unsafe { libc::pwrite(file.as_raw_fd(), address, len, 0) };
    let mut data = vec![0; usize::try_from(done).ok()?];
    file.read_exact_at(&mut data, 0).unwrap();
    (data.len() == len).then_some(data)
}

/// Whether one may write there; then it is done.
pub(super) fn poke(window: &ReservedWindow, at: u64, data: &[u8]) -> bool {
    let file = scratch();
    file.write_all_at(data, 0).unwrap();
    let address = std::ptr::without_provenance_mut((window.host_addr() + at) as usize);
    // SAFETY: nothing of Rust's lies in a window; elsewhere than in a writable mapping the kernel refuses.
    let done = unsafe { libc::pread(file.as_raw_fd(), address, data.len(), 0) };
    done == data.len() as isize
}

fn setup() -> (Setup, Arc<ReservedWindow>) {
    let window = Arc::new(ReservedWindow::new(LENGTH).unwrap());
    // Whatever temporary folders lie on, it may be overlayfs.
    let mut setup = Setup { in_memory: true, ..Setup::default() };
    setup.config.window = Some(window.clone());
    (setup, window)
}

fn guest() -> (Guest, Arc<ReservedWindow>) {
    let (setup, window) = setup();
    (Guest::with(setup), window)
}

impl Guest {
    fn map_flags(&mut self, node: u64, to: u64, len: u64, from: u64, flags: u64) -> Result<Payload, i32> {
        let body = Body::new().u64(u64::MAX).u64(from).u64(len).u64(flags).u64(to);
        self.ask(SETUPMAPPING, node, body)
    }

    fn map(&mut self, node: u64, to: u64, len: u64, from: u64) -> Result<Payload, i32> {
        self.map_flags(node, to, len, from, READ)
    }

    fn map_writable(&mut self, node: u64, to: u64, len: u64, from: u64) -> Result<Payload, i32> {
        self.map_flags(node, to, len, from, READ | WRITE)
    }

    fn unmap(&mut self, ranges: &[(u64, u64)]) -> Result<Payload, i32> {
        let body = Body::new().u32(ranges.len() as u32);
        self.ask(REMOVEMAPPING, 0, ranges.iter().fold(body, |body, (at, len)| body.u64(*at).u64(*len)))
    }

    /// A file of the host's with so many bytes that tell their place, and its node.
    fn file(&mut self, name: &str, len: u64) -> u64 {
        let data: Vec<u8> = (0..len).map(byte).collect();
        fs::write(self.folder.0.join(name), data).unwrap();
        self.node(ROOT, name)
    }

    /// How many mappings of its files this process has.
    fn mapped(&self) -> usize {
        let folder = self.folder.0.to_str().unwrap();
        fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(folder)).count()
    }
}

fn byte(at: u64) -> u8 {
    (at / 7) as u8
}

#[test]
fn a_window_is_agreed_on_and_files_say_that_they_are_to_be_mapped() {
    let (mut guest, _window) = guest();
    let answer = guest.mount();
    let flags = u64::from(answer.u32(12)) | u64::from(answer.u32(32)) << 32;
    for (bit, expected) in [(26, true), (33, true), (28, false)] {
        assert_eq!(flags >> bit & 1 != 0, expected, "INIT flag {bit}");
    }
    assert_eq!(1 << (answer.u32(28) >> 16), page_size(), "map_alignment");
    fs::write(guest.folder.0.join("file"), "contents").unwrap();
    fs::create_dir(guest.folder.0.join("dir")).unwrap();
    for (name, expected) in [("file", ATTR_DAX), ("dir", 0)] {
        let entry = guest.lookup(ROOT, name).unwrap();
        assert_eq!(entry.u32(40 + 84), expected, "{name}");
        let attributes = guest.ask(3, entry.u64(0), Body::new().u32(0).u32(0).u64(0)).unwrap();
        assert_eq!(attributes.u32(16 + 84), expected, "{name}");
    }
}

#[test]
fn without_a_window_or_a_guest_for_it_nothing_is_mapped() {
    let mut without = Guest::new();
    let (setup, window) = setup();
    let mut old = Guest::unmounted(setup);
    // FUSE_MAP_ALIGNMENT and FUSE_HAS_INODE_DAX not offered
    let offered = LINUX_FLAGS & !(1 << 26 | 1 << 33);
    let body = Body::new().u32(7).u32(41).u32(1 << 17).u32(offered as u32).u32((offered >> 32) as u32);
    let answer = old.ask(INIT, ROOT, body.bytes(&[0; 44])).unwrap();
    assert_eq!(answer.u32(28) >> 16, 0, "map_alignment");
    for guest in [&mut without, &mut old] {
        fs::write(guest.folder.0.join("file"), "contents").unwrap();
        let entry = guest.lookup(ROOT, "file").unwrap();
        assert_eq!(entry.u32(40 + 84), 0);
        assert_eq!(guest.map(entry.u64(0), 0, page_size(), 0), Err(libc::ENOSYS));
        assert_eq!(guest.unmap(&[(0, page_size())]), Err(libc::ENOSYS));
    }
    assert_eq!(peek(&window, 0, 1), None);
}

#[test]
fn a_file_is_read_through_the_window() {
    let (mut guest, window) = guest();
    let node = guest.file("file", 4 * MIB);
    guest.map(node, 2 * MIB, 2 * MIB, MIB).unwrap();
    for at in [0, 1, 5000, 2 * MIB - 1] {
        assert_eq!(peek(&window, 2 * MIB + at, 1), Some(vec![byte(MIB + at)]), "{at}");
    }
    for outside in [0, 2 * MIB - 1, 4 * MIB, LENGTH - 1] {
        assert_eq!(peek(&window, outside, 1), None, "{outside}");
    }
    assert!(!poke(&window, 2 * MIB, b"x"), "it was not mapped for writing");
    // The guest forgets files only when it has no mapping left; one that lies keeps the file.
    guest.forget(node, 1);
    assert_eq!(peek(&window, 2 * MIB, 1), Some(vec![byte(MIB)]));
    assert_eq!(guest.counter("setupmapping_requests"), 1);
}

#[test]
fn what_is_written_through_the_window_is_in_the_file_and_the_other_way_round() {
    let (mut guest, window) = guest();
    let node = guest.file("file", 2 * page_size());
    // Linux asks again in the same place when it is to write.
    guest.map(node, 0, 2 * MIB, 0).unwrap();
    guest.map_writable(node, 0, 2 * MIB, 0).unwrap();
    assert!(poke(&window, page_size(), b"through the window"));
    let handle = guest.open(node, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(handle, page_size(), 18), Ok(b"through the window".to_vec()));
    guest.write(handle, page_size(), b"by a message......").unwrap();
    assert_eq!(peek(&window, page_size(), 12), Some(b"by a message".to_vec()));
    let host = OpenOptions::new().write(true).open(guest.folder.0.join("file")).unwrap();
    host.write_all_at(b"by the host.", page_size()).unwrap();
    assert_eq!(peek(&window, page_size(), 12), Some(b"by the host.".to_vec()));
}

#[test]
fn beyond_the_end_of_the_file_is_nothing_until_it_grows_and_again_when_it_shrinks() {
    let (mut guest, window) = guest();
    let node = guest.file("file", 100);
    guest.map_writable(node, 0, 2 * MIB, 0).unwrap();
    assert_eq!(peek(&window, 100, 1), Some(vec![0]), "the rest of a page");
    assert_eq!((peek(&window, page_size(), 1), poke(&window, page_size(), b"x")), (None, false));
    let host = OpenOptions::new().write(true).open(guest.folder.0.join("file")).unwrap();
    host.set_len(MIB).unwrap();
    assert_eq!(peek(&window, MIB - 1, 1), Some(vec![0]));
    assert!(poke(&window, MIB - 1, b"x"));
    host.set_len(0).unwrap();
    assert_eq!((peek(&window, 0, 1), poke(&window, 0, b"x")), (None, false));
    // That is the fault which the VMM tells from its own.
    assert!(window.contains(window.host_addr() + 100));
    // A mapping that begins beyond the end is as good.
    guest.map(node, 4 * MIB, 2 * MIB, 64 * MIB).unwrap();
    assert_eq!(peek(&window, 4 * MIB, 1), None);
    assert_eq!(host.metadata().unwrap().len(), 0);
}

#[test]
fn a_read_only_share_is_never_mapped_for_writing() {
    let (mut setup, window) = setup();
    setup.readonly = true;
    let mut guest = Guest::with(setup);
    let node = guest.file("file", 5000);
    guest.map(node, 0, 2 * MIB, 0).unwrap();
    assert_eq!(guest.map_writable(node, 0, 2 * MIB, 0), Err(libc::EROFS));
    assert_eq!(peek(&window, 4999, 1), Some(vec![byte(4999)]), "what was mapped stays");
    assert!(!poke(&window, 0, b"x"));
    assert_eq!(guest.map_writable(node, 4 * MIB, 2 * MIB, 0), Err(libc::EROFS));
    assert_eq!(peek(&window, 4 * MIB, 1), None);
}

#[test]
fn ranges_and_flags_that_cannot_be_are_refused() {
    let (mut guest, window) = guest();
    let (node, page) = (guest.file("file", 10_000), page_size());
    let top = u64::MAX - page + 1;
    for (to, len, from) in [
        (0, 0, 0),
        (0, 1, 0),
        (0, page - 1, 0),
        (1, page, 0),
        (0, page, 1),
        (page / 2, page, 0),
        (LENGTH, page, 0),
        (LENGTH - page, 2 * page, 0),
        (0, LENGTH + page, 0),
        (0, top, 0),
        (top, page, 0),
        (page, top, 0),
        (0, page, top),
        (0, page, 1 << 63),
        (0, page, (1 << 63) - page),
        (0, 2 * page, (1 << 63) - 2 * page),
        (u64::MAX, u64::MAX, u64::MAX),
    ] {
        assert_eq!(guest.map(node, to, len, from), Err(libc::EINVAL), "{to:#x} {len:#x} {from:#x}");
    }
    for flags in [0, WRITE, 4, READ | 4, 1 << 63, u64::MAX] {
        assert_eq!(guest.map_flags(node, 0, page, 0, flags), Err(libc::EINVAL), "{flags:#x}");
    }
    assert_eq!(guest.ask(SETUPMAPPING, node, Body::new().bytes(&[0; 39])), Err(libc::EINVAL));
    assert_eq!((guest.mapped(), peek(&window, 0, 1)), (0, None));
    // The bounds themselves are good.
    guest.map(node, LENGTH - page, page, 0).unwrap();
    guest.map(node, 0, LENGTH, 0).unwrap();
}

#[test]
fn only_regular_files_that_the_guest_knows_are_mapped() {
    let (mut guest, _window) = guest();
    let path = guest.folder.0.clone();
    fs::create_dir(path.join("dir")).unwrap();
    std::os::unix::fs::symlink("file", path.join("link")).unwrap();
    let fifo = Body::new().u32(libc::S_IFIFO | 0o666).u32(0).u32(0).u32(0).name("fifo");
    guest.ask(8, ROOT, fifo).unwrap();
    let known = guest.file("file", 100);
    for (name, error) in [("dir", libc::EISDIR), ("link", libc::ELOOP), ("fifo", libc::ENXIO)] {
        let node = guest.node(ROOT, name);
        for flags in [READ, READ | WRITE] {
            assert_eq!(guest.map_flags(node, 0, page_size(), 0, flags), Err(error), "{name}");
        }
    }
    assert_eq!(guest.map(ROOT, 0, page_size(), 0), Err(libc::EISDIR));
    for foreign in [0, known + 1000, u64::MAX] {
        assert_eq!(guest.map(foreign, 0, page_size(), 0), Err(libc::ESTALE), "{foreign}");
    }
    guest.forget(known, 1);
    assert_eq!(guest.map(known, 0, page_size(), 0), Err(libc::ESTALE));
    assert_eq!(guest.mapped(), 0);
}

#[test]
fn parts_are_taken_away_and_what_is_not_there_may_be_too() {
    let (mut guest, window) = guest();
    let (node, page) = (guest.file("file", MIB), page_size());
    guest.map(node, 0, 8 * page, 0).unwrap();
    guest.unmap(&[(2 * page, page), (5 * page, 2 * page)]).unwrap();
    let readable = |window: &ReservedWindow| -> Vec<u64> {
        (0..16).filter(|number| peek(window, number * page, 1) == Some(vec![byte(number * page)])).collect()
    };
    assert_eq!(readable(&window), [0, 1, 3, 4, 7]);
    guest.unmap(&[(2 * page, page), (10 * page, page), (LENGTH - page, page)]).unwrap();
    guest.unmap(&[]).unwrap();
    assert_eq!(readable(&window), [0, 1, 3, 4, 7]);
    // One that cannot be, and none is taken.
    for (at, len) in [(0, 0), (1, page), (0, 1), (LENGTH, page), (page, u64::MAX), (u64::MAX, page)] {
        assert_eq!(guest.unmap(&[(0, page), (at, len)]), Err(libc::EINVAL), "{at} {len}");
    }
    for count in [2, 1 << 28, u32::MAX] {
        let body = Body::new().u32(count).u64(0).u64(page);
        assert_eq!(guest.ask(REMOVEMAPPING, 0, body), Err(libc::EINVAL), "{count}");
    }
    assert_eq!(guest.ask(REMOVEMAPPING, 0, Body::new()), Err(libc::EINVAL));
    assert_eq!(readable(&window), [0, 1, 3, 4, 7]);
    // As many as Linux puts into one request.
    let many: Vec<_> = (0..256).map(|number| (number * page, page)).collect();
    guest.unmap(&many).unwrap();
    assert_eq!((readable(&window), guest.mapped()), (vec![], 0));
}

#[test]
fn a_new_mapping_takes_the_place_of_others() {
    let (mut guest, window) = guest();
    let page = page_size();
    let first = guest.file("first", MIB);
    fs::write(guest.folder.0.join("second"), vec![0xee; MIB as usize]).unwrap();
    let second = guest.node(ROOT, "second");
    guest.map(first, 0, 4 * page, 0).unwrap();
    guest.map(first, 4 * page, 4 * page, 4 * page).unwrap();
    guest.map(second, 3 * page, 2 * page, 0).unwrap();
    for (number, expected) in [(2, byte(2 * page)), (3, 0xee), (4, 0xee), (5, byte(5 * page))] {
        assert_eq!(peek(&window, number * page, 1), Some(vec![expected]), "page {number}");
    }
    guest.unmap(&[(0, 8 * page)]).unwrap();
    assert_eq!(guest.mapped(), 0);
}

#[test]
fn nothing_stays_mapped_when_the_guest_ends_or_the_device_does() {
    let (mut guest, window) = guest();
    let node = guest.file("file", MIB);
    let mapped = |guest: &mut Guest, node| {
        guest.map_writable(node, MIB, MIB, 0).unwrap();
        assert_eq!((guest.mapped(), peek(&window, MIB, 1).is_some()), (1, true));
    };
    mapped(&mut guest, node);
    guest.ask(38, 0, Body::new()).unwrap();
    assert_eq!(guest.mapped(), 0, "DESTROY");

    guest.mount();
    let node = guest.node(ROOT, "file");
    mapped(&mut guest, node);
    guest.mount();
    assert_eq!(guest.mapped(), 0, "another INIT");

    let node = guest.node(ROOT, "file");
    mapped(&mut guest, node);
    guest.host.reset();
    assert_eq!(guest.mapped(), 0, "reset");
    guest.restart();
    guest.mount();

    // A pause is no end: the guest goes on with what it has.
    let node = guest.node(ROOT, "file");
    mapped(&mut guest, node);
    guest.host.pause();
    guest.host.unpause();
    assert_eq!(guest.mapped(), 1, "pause");
    // A driver that begins anew without a reset.
    guest.host.stop_ring(0);
    guest.host.stop_ring(REQUESTS);
    guest.restart();
    assert_eq!(guest.mapped(), 0, "a new driver");

    guest.mount();
    let node = guest.node(ROOT, "file");
    mapped(&mut guest, node);
    let Guest { host, folder, .. } = guest;
    drop(host);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(folder.0.to_str().unwrap()), "the device's end");
    assert_eq!(peek(&window, MIB, 1), None);
}

#[test]
fn a_share_that_is_removed_is_out_of_the_window_at_once() {
    let (mut setup, window) = setup();
    setup.collection = true;
    let mut guest = Guest::with(setup);
    for name in ["going", "staying"] {
        let path = guest.folder.0.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), name).unwrap();
        let share = ShareConfig::new(File::open(path).unwrap().into());
        guest.passthrough.add_share(&std::ffi::CString::new(name).unwrap(), share).unwrap();
    }
    let page = page_size();
    let [going, staying] = ["going", "staying"].map(|name| {
        let folder = guest.node(ROOT, name);
        guest.node(folder, "file")
    });
    guest.map_writable(going, 0, 2 * page, 0).unwrap();
    guest.map_writable(staying, page, page, 0).unwrap();
    guest.map_writable(going, 2 * page, page, 0).unwrap();
    assert_eq!(peek(&window, 0, 5), Some(b"going".to_vec()));
    guest.passthrough.remove_share(c"going", Duration::from_secs(10)).unwrap();
    assert_eq!([0, 2].map(|number| peek(&window, number * page, 1)), [None, None]);
    assert!(!poke(&window, 0, b"x"));
    assert_eq!(peek(&window, page, 7), Some(b"staying".to_vec()));
    assert_eq!(guest.mapped(), 1, "nothing keeps the folder busy");
    assert_eq!(guest.map(going, 0, page, 0), Err(libc::ESTALE));
    guest.map(staying, 0, page, 0).unwrap();
    assert_eq!(guest.map(ROOT, 0, page, 0), Err(libc::EPERM), "the folder of shares is nowhere on the host");
}

#[test]
fn no_descriptor_reaches_into_the_window() {
    for (addr, len) in [(WINDOW_GUEST_ADDR, 4096), (WINDOW_GUEST_ADDR + 4096, 16)] {
        for writable in [true, false] {
            let (mut guest, window) = guest();
            let node = guest.file("file", 10_000);
            guest.map_writable(node, 0, 2 * MIB, 0).unwrap();
            let handle = guest.open(node, libc::O_RDWR).unwrap();
            let body = Guest::read_body(handle, 0, 4096);
            let mut request = guest.header(15, 0, body.0.len());
            request.extend(&body.0);
            guest.queues[0].write(REQUEST, &request);
            let request = (REQUEST, request.len() as u32, false);
            let buffers = match writable {
                true => vec![request, (ANSWER, 16, true), (addr, len, true)],
                false => vec![request, (addr, len, false), (ANSWER, 4112, true)],
            };
            guest.queues[1].offer(&buffers).unwrap();
            guest.host.kick(REQUESTS);
            assert!(guest.host.fault().is_some(), "{addr:#x} {writable}");
            assert_eq!(peek(&window, 0, 4096), Some((0..4096).map(byte).collect()));
            // Neither does a ring.
            guest.host.reset();
            assert_eq!(guest.mapped(), 0);
            guest.restart();
            let mut layout = guest.queues[1].layout();
            layout.used_ring = WINDOW_GUEST_ADDR;
            let start = strato_virtio::RingStart { queue: REQUESTS, layout, next_avail: 0, kick: None };
            assert!(guest.host.start_ring(start).is_err());
        }
    }
}

#[test]
fn mappings_are_not_saved_and_the_window_has_to_be_the_same() {
    let (mut guest, _window) = guest();
    let node = guest.file("file", MIB);
    guest.map(node, 0, MIB, 0).unwrap();
    assert_eq!(guest.host.save_obstacle(), Some(SaveObstacle::MountedShare));
    guest.ask(38, 0, Body::new()).unwrap();
    assert_eq!((guest.host.save_obstacle(), guest.mapped()), (None, 0));
    let saved = guest.host.save();
    assert!(guest.host.restore(&saved).is_ok());

    let mut without = Guest::unmounted(Setup::default());
    let error = without.host.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("window"), "{error}");
    let saved = without.host.save();
    assert!(guest.host.restore(&saved).unwrap_err().to_string().contains("window"));
    // Version 1 knew of no window.
    let old = RecordWriter::new(kind(*b"FS  "), 1).u8(0).finish();
    assert!(super::super::state::restore(&old, 0).is_ok());
    assert!(super::super::state::restore(&old, LENGTH).is_err());
}
