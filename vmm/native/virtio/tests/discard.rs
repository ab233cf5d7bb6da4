//! Memory that is given back is the host's again, and reads as zeroes.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use strato_virtio::{GuestRam, discard};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

const PAGE: u64 = 4096;
const LEN: u64 = 64 * PAGE;
const BASE: u64 = 0x10_0000;

fn memfd(flags: u32, len: u64) -> File {
    // SAFETY: the name is a live string.
    let fd = unsafe { libc::memfd_create(c"discard".as_ptr(), flags) };
    assert!(fd >= 0);
    // SAFETY: made just now; nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    file
}

/// Guest memory of one region at [`BASE`], without huge pages of the kernel's own making.
fn ram(builder: MmapRegionBuilder<()>) -> GuestRam {
    let mapping = builder.build().unwrap();
    // SAFETY: the range is that mapping, and nothing of it is lost.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_NOHUGEPAGE) };
    GuestRam::from_regions(vec![GuestRegionMmap::new(mapping, GuestAddress(BASE)).unwrap()]).unwrap()
}

fn builder(flags: i32, file: Option<&File>) -> MmapRegionBuilder<()> {
    let builder = MmapRegionBuilder::new_with_bitmap(LEN as usize, ())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags | libc::MAP_NORESERVE);
    match file {
        Some(file) => builder.with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0)),
        None => builder,
    }
}

fn fill(ram: &GuestRam) {
    ram.write_slice(&vec![0x5a; LEN as usize], GuestAddress(BASE)).unwrap();
}

/// Which pages hold zeroes only.
fn zero_pages(ram: &GuestRam) -> Vec<u64> {
    let mut page = [0; PAGE as usize];
    let mut zero = |index: &u64| {
        ram.read_slice(&mut page, GuestAddress(BASE + index * PAGE)).unwrap();
        page.iter().all(|byte| *byte == 0)
    };
    (0..LEN / PAGE).filter(|index| zero(index)).collect()
}

/// Bytes of a mapping that are in memory and of no file, as /proc/self/smaps has them.
fn anonymous_bytes(mapping: &MmapRegion<()>) -> u64 {
    let (first, end) = (mapping.as_ptr() as u64, mapping.as_ptr() as u64 + mapping.size() as u64);
    let mut inside = false;
    let mut bytes = 0;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let word = line.split_whitespace().next().unwrap();
        if let Some((from, to)) = word.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            inside = number(from) >= first && number(to) <= end;
        } else if inside && word == "Anonymous:" {
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            bytes += kib * 1024;
        }
    }
    bytes
}

fn mapping(ram: &GuestRam) -> Arc<MmapRegion<()>> {
    ram.iter().next().unwrap().get_mmap()
}

#[test]
fn anonymous_memory_goes_back() {
    let ram = ram(builder(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None));
    fill(&ram);
    assert_eq!(anonymous_bytes(&mapping(&ram)), LEN);
    assert_eq!(discard(&ram, BASE + 3 * PAGE, 10 * PAGE).unwrap(), 10 * PAGE);
    assert_eq!(anonymous_bytes(&mapping(&ram)), LEN - 10 * PAGE);
    assert_eq!(zero_pages(&ram), (3..13).collect::<Vec<_>>());
}

#[test]
fn shared_anonymous_memory_goes_back() {
    let ram = ram(builder(libc::MAP_SHARED | libc::MAP_ANONYMOUS, None));
    fill(&ram);
    assert_eq!(discard(&ram, BASE, 10 * PAGE).unwrap(), 10 * PAGE);
    assert_eq!(zero_pages(&ram), (0..10).collect::<Vec<_>>());
}

#[test]
fn memory_of_a_shared_file_goes_back_for_everyone_who_has_it_mapped() {
    let file = memfd(0, LEN + PAGE);
    let with_offset = builder(libc::MAP_SHARED, None);
    let ram = ram(with_offset.with_file_offset(FileOffset::new(file.try_clone().unwrap(), PAGE)));
    fill(&ram);
    assert_eq!(file.metadata().unwrap().blocks() * 512, LEN);
    assert_eq!(discard(&ram, BASE + PAGE, 20 * PAGE).unwrap(), 20 * PAGE);
    assert_eq!(file.metadata().unwrap().blocks() * 512, LEN - 20 * PAGE);
    assert_eq!(file.metadata().unwrap().len(), LEN + PAGE);
    assert_eq!(zero_pages(&ram), (1..21).collect::<Vec<_>>());
}

#[test]
fn private_pages_of_a_file_go_back_and_the_file_stays() {
    let mut file = memfd(0, 0);
    file.write_all(&vec![0x77; LEN as usize]).unwrap();
    let ram = ram(builder(libc::MAP_PRIVATE, Some(&file)));
    fill(&ram);
    assert_eq!(anonymous_bytes(&mapping(&ram)), LEN);
    assert_eq!(discard(&ram, BASE + 5 * PAGE, 6 * PAGE).unwrap(), 6 * PAGE);
    assert_eq!(anonymous_bytes(&mapping(&ram)), LEN - 6 * PAGE);
    assert_eq!(zero_pages(&ram), (5..11).collect::<Vec<_>>());
    // As usable as before.
    fill(&ram);
    assert!(zero_pages(&ram).is_empty());
    let mut kept = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut kept).unwrap();
    assert!(kept.iter().all(|byte| *byte == 0x77));
}

#[test]
fn of_pages_that_are_partly_in_the_range_nothing_is_touched() {
    let ram = ram(builder(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None));
    for (offset, len, pages) in [
        (1, 3 * PAGE, vec![1, 2]),
        (PAGE - 1, PAGE + 2, vec![1]),
        (PAGE - 1, PAGE, vec![]),
        (10, 20, vec![]),
        (0, 0, vec![]),
        (LEN - 2 * PAGE + 1, 2 * PAGE - 1, vec![LEN / PAGE - 1]),
    ] {
        fill(&ram);
        let discarded = discard(&ram, BASE + offset, len).unwrap();
        assert_eq!(discarded, PAGE * pages.len() as u64, "{offset}+{len}");
        assert_eq!(zero_pages(&ram), pages, "{offset}+{len}");
    }
}

#[test]
fn ranges_that_leave_guest_memory_are_refused_as_a_whole() {
    let ram = ram(builder(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None));
    fill(&ram);
    for (addr, len) in [
        (BASE - PAGE, PAGE),
        (BASE - PAGE, 2 * PAGE),
        (BASE + LEN, PAGE),
        (BASE + LEN - PAGE, 2 * PAGE),
        (BASE, u64::MAX),
        (u64::MAX - PAGE, 2 * PAGE),
        (0, BASE),
    ] {
        let error = discard(&ram, addr, len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{addr:#x}+{len:#x}");
    }
    assert!(zero_pages(&ram).is_empty());
}

#[test]
fn a_range_may_span_regions_but_no_hole() {
    let file = memfd(0, PAGE * 4);
    let region = |at: u64, file: Option<&File>| {
        let flags = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let mut builder = MmapRegionBuilder::new_with_bitmap(4 * PAGE as usize, ())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags);
        if let Some(file) = file {
            builder = builder.with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0));
        }
        GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(at)).unwrap()
    };
    let regions = vec![region(0, None), region(4 * PAGE, Some(&file)), region(16 * PAGE, None)];
    let ram = GuestRam::from_regions(regions).unwrap();
    ram.write_slice(&vec![1; 8 * PAGE as usize], GuestAddress(0)).unwrap();
    assert_eq!(discard(&ram, 3 * PAGE, 2 * PAGE).unwrap(), 2 * PAGE);
    assert_eq!(file.metadata().unwrap().blocks() * 512, 3 * PAGE);
    let mut all = vec![9; 8 * PAGE as usize];
    ram.read_slice(&mut all, GuestAddress(0)).unwrap();
    let zeroes = all.iter().filter(|byte| **byte == 0).count() as u64;
    assert_eq!((zeroes, all[3 * PAGE as usize]), (2 * PAGE, 0));
    assert!(discard(&ram, 7 * PAGE, 10 * PAGE).is_err());
    assert_eq!(ram.read_obj::<u8>(GuestAddress(7 * PAGE)).unwrap(), 1);
}

#[test]
fn huge_pages_go_as_a_whole_or_not_at_all() {
    const HUGE: u64 = 2 << 20;
    // No such page is needed for this: none is touched, and none is reserved.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_HUGETLB;
    let region = |flags: i32| {
        let builder = MmapRegionBuilder::new_with_bitmap(2 * HUGE as usize, ())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags);
        let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(HUGE)).unwrap();
        GuestRam::from_regions(vec![region]).unwrap()
    };
    let ram = region(flags | libc::MAP_HUGE_2MB);
    for (addr, len, discarded) in [
        (HUGE, PAGE, 0),
        (HUGE + PAGE, HUGE, 0),
        (HUGE, HUGE, HUGE),
        (HUGE + PAGE, 2 * HUGE - PAGE, HUGE),
        (HUGE, 2 * HUGE - PAGE, HUGE),
        (HUGE, 2 * HUGE, 2 * HUGE),
    ] {
        assert_eq!(discard(&ram, addr, len).unwrap(), discarded, "{addr:#x}+{len:#x}");
    }
    // Of a size that is not known nothing is touched.
    assert_eq!(discard(&region(flags), HUGE, HUGE).unwrap(), 0);
}

#[test]
fn huge_pages_of_a_file_go_back_where_the_host_has_some() {
    const HUGE: u64 = 2 << 20;
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.map_or(0, |text| text.trim().parse().unwrap()) < 2 {
        println!("This host has no free huge pages of 2 MiB (vm.nr_hugepages): their files are not tested");
        return;
    }
    let file = memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, 2 * HUGE);
    let builder = MmapRegionBuilder::new_with_bitmap(2 * HUGE as usize, ())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_hugetlbfs(true)
        .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0));
    let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(0)).unwrap();
    let ram = GuestRam::from_regions(vec![region]).unwrap();
    ram.write_slice(&vec![1; 2 * HUGE as usize], GuestAddress(0)).unwrap();
    assert_eq!(discard(&ram, PAGE, HUGE).unwrap(), 0);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(PAGE)).unwrap(), 1);
    assert_eq!(discard(&ram, PAGE, 2 * HUGE - PAGE).unwrap(), HUGE);
    assert_eq!(file.metadata().unwrap().blocks() * 512, HUGE);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(HUGE)).unwrap(), 0);
}
