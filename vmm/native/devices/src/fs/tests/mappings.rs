//! The table of what is mapped, against a model of pages; and the reserved window itself.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use strato_virtio::mock::SeededRandom;

use super::super::backend::{MappableFile, Revocation, ShareId};
use super::super::mappings::Mappings;
use super::super::window::{Mapping, ReservedWindow, Window, page_size};
use super::guest::Folder;
use super::window::{peek, poke};

const PAGES: u64 = 64;

/// A window that notes which page of the file is where. Mapping page 99 of a file fails.
#[derive(Debug, Default)]
struct Pages(Mutex<Vec<Option<u64>>>);

impl Pages {
    fn new(pages: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![None; pages as usize])))
    }

    fn now(&self) -> Vec<Option<u64>> {
        self.0.lock().unwrap().clone()
    }
}

impl Window for Pages {
    fn length(&self) -> u64 {
        self.0.lock().unwrap().len() as u64 * page_size()
    }

    fn map(&self, _file: BorrowedFd<'_>, mapping: Mapping) -> io::Result<()> {
        let first = mapping.file_offset / page_size();
        let (at, count) = (mapping.window_offset / page_size(), mapping.len / page_size());
        if first + count > 99 {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let mut pages = self.0.lock().unwrap();
        (0..count).for_each(|page| pages[(at + page) as usize] = Some(first + page));
        Ok(())
    }

    fn unmap(&self, window_offset: u64, len: u64) {
        let start = (window_offset / page_size()) as usize;
        self.0.lock().unwrap()[start..start + (len / page_size()) as usize].fill(None);
    }
}

#[derive(Debug)]
struct SomeFile {
    file: File,
    share: ShareId,
    revoked: AtomicBool,
}

impl SomeFile {
    fn of(share: ShareId) -> Self {
        Self { file: File::open("/dev/null").unwrap(), share, revoked: AtomicBool::new(false) }
    }
}

impl AsFd for SomeFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl MappableFile for SomeFile {
    fn share(&self) -> ShareId {
        self.share
    }

    fn revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }
}

fn pages(window_page: u64, count: u64, file_page: u64) -> Mapping {
    Mapping {
        window_offset: window_page * page_size(),
        len: count * page_size(),
        file_offset: file_page * page_size(),
        writable: false,
    }
}

#[test]
fn whatever_is_mapped_is_known_and_can_be_taken_away() {
    let files = [SomeFile::of(0), SomeFile::of(1), SomeFile::of(2)];
    for seed in 0..200 {
        let mut random = SeededRandom::new(seed);
        let window = Pages::new(PAGES);
        let mappings = Mappings::new(window.clone());
        // (share, page of the file)
        let mut model = vec![None; PAGES as usize];
        for step in 0..200 {
            let (at, count) = (random.below(PAGES), 1 + random.below(16));
            let range = mappings.range(at * page_size(), count * page_size());
            assert_eq!(range.is_ok(), at + count <= PAGES);
            let Ok(range) = range else { continue };
            let touched = at as usize..(at + count) as usize;
            match random.below(8) {
                0..=4 => {
                    let (share, first) = (random.below(3), random.below(100));
                    let mapped = mappings.map(&files[share as usize], pages(at, count, first));
                    assert_eq!(mapped.is_ok(), first + count <= 99);
                    if mapped.is_ok() {
                        touched.for_each(|page| model[page] = Some((share, first + page as u64 - at)));
                    }
                }
                5 | 6 => {
                    mappings.unmap(&range).unwrap();
                    model[touched].fill(None);
                }
                _ => {
                    let share = random.below(3);
                    mappings.revoke(share);
                    model
                        .iter_mut()
                        .filter(|page| page.is_some_and(|of| of.0 == share))
                        .for_each(|p| *p = None);
                }
            }
            let expected: Vec<_> = model.iter().map(|page| page.map(|(_, page)| page)).collect();
            assert_eq!(window.now(), expected, "seed {seed}, step {step}");
        }
        drop(mappings);
        assert_eq!(window.now(), vec![None; PAGES as usize], "seed {seed}");
    }
}

#[test]
fn the_number_of_pieces_is_bounded() {
    let window = Pages::new(1 << 16);
    let mappings = Mappings::new(window.clone());
    let file = SomeFile::of(1);
    let code = |outcome: io::Result<()>| outcome.err().and_then(|error| error.raw_os_error());
    let mut made = 0;
    while mappings.map(&file, pages(made * 4, 3, 0)).is_ok() {
        made += 1;
    }
    assert_eq!(made, 8192);
    assert_eq!(code(mappings.map(&file, pages(made * 4, 3, 0))), Some(libc::ENOSPC));
    // Replacing needs no room; halving does.
    mappings.map(&file, pages(0, 3, 7)).unwrap();
    let middle = page_size()..2 * page_size();
    assert_eq!(code(mappings.unmap(&middle)), Some(libc::ENOMEM));
    assert_eq!(code(mappings.map(&file, pages(1, 1, 0))), Some(libc::ENOSPC));
    assert_eq!(window.now()[..4], [Some(7), Some(8), Some(9), None]);
    mappings.unmap(&(4 * page_size()..7 * page_size())).unwrap();
    mappings.unmap(&middle).unwrap();
    assert_eq!(window.now()[..8], [Some(7), None, Some(9), None, None, None, None, None]);
    mappings.clear();
    assert!(window.now().iter().all(Option::is_none));
}

#[test]
fn nothing_is_mapped_after_its_share_has_gone_whoever_is_faster() {
    for _ in 0..200 {
        let window = Pages::new(PAGES);
        let mappings = Mappings::new(window.clone());
        let (going, staying) = (SomeFile::of(1), SomeFile::of(2));
        std::thread::scope(|scope| {
            let mapper = scope.spawn(|| {
                for at in 0..PAGES / 2 {
                    let _ = mappings.map(&going, pages(at, 1, 0));
                    mappings.map(&staying, pages(PAGES / 2 + at, 1, 0)).unwrap();
                }
            });
            going.revoked.store(true, Ordering::SeqCst);
            mappings.revoke(1);
            mapper.join().unwrap();
        });
        let now = window.now();
        assert!(now[..PAGES as usize / 2].iter().all(Option::is_none));
        assert!(now[PAGES as usize / 2..].iter().all(Option::is_some));
    }
}

#[test]
fn a_window_has_whole_pages_and_keeps_to_its_place() {
    for bad in [0, 1, page_size() + 1, page_size() / 2, u64::MAX, u64::MAX - page_size() + 1] {
        assert!(ReservedWindow::new(bad).is_err(), "{bad}");
    }
    let window = ReservedWindow::new(4 * page_size()).unwrap();
    let start = window.host_addr();
    let contained = [start, start + 4 * page_size() - 1].map(|address| window.contains(address));
    let others = [start - 1, start + 4 * page_size(), 0, u64::MAX].map(|address| window.contains(address));
    assert_eq!((contained, others), ([true; 2], [false; 4]));

    let folder = Folder::new();
    fs::write(folder.0.join("file"), [7; 100]).unwrap();
    let file = File::open(folder.0.join("file")).unwrap();
    for (at, len) in [(4, 1), (3, 2), (0, 5), (u64::MAX / page_size(), 1), (0, 0)] {
        let refused = window.map(file.as_fd(), pages(at, len, 0)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{at} {len}");
        window.unmap(at * page_size(), len * page_size());
    }
    window.unmap(u64::MAX, u64::MAX);
    assert_eq!(peek(&window, 0, 1), None);
}

#[test]
fn what_the_kernel_refuses_leaves_the_window_as_it_was() {
    let window = ReservedWindow::new(4 * page_size()).unwrap();
    let folder = Folder::new();
    fs::write(folder.0.join("file"), [7; 100]).unwrap();
    let file = File::open(folder.0.join("file")).unwrap();
    window.map(file.as_fd(), pages(1, 1, 0)).unwrap();
    let writable = Mapping { writable: true, ..pages(1, 1, 0) };
    let refused = window.map(file.as_fd(), writable).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "not open for writing");
    let (pipe, _other) = io::pipe().unwrap();
    assert!(window.map(pipe.as_fd(), pages(1, 1, 0)).is_err());
    assert!(window.map(file.as_fd(), Mapping { file_offset: 1 << 63, ..pages(1, 1, 0) }).is_err());
    assert_eq!(peek(&window, page_size(), 2), Some(vec![7, 7]));
    assert!(!poke(&window, page_size(), b"x"));
    assert_eq!(peek(&window, 0, 1), None);
}
