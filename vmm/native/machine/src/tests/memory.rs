//! RAM of every kind under a guest that runs, and the record of what it writes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use strato_virtio::{GuestRam, discard};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::guest::{Plan, Probe, RAM_BYTES, WORD, anonymous, code};
use crate::memory::{Backend, HugePages, MemoryConfig, Region, clear, guest_ram};

const PAGE: u64 = 4096;
/// Far from code and tables.
const PLACE: u64 = 0x20_0000;

/// Writes a word at 2 MiB, and says it whenever it is asked to.
fn writer() -> &'static [u8] {
    code!(
        "mov dword ptr [0x200000], 0x11223344",
        "2:",
        "in al, 0x10",
        "mov eax, [0x200000]",
        "out 0x10, eax",
        "jmp 2b",
    )
}

/// A file without a name, as long as RAM, whose pages are all 0x77.
fn file() -> File {
    // SAFETY: the name is a C string of static storage.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: made just now, nobody else owns it.
    let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    file.write_all(&vec![0x77; RAM_BYTES as usize]).unwrap();
    file
}

fn with_backend(backend: Backend) -> MemoryConfig {
    MemoryConfig { backend, ..anonymous() }
}

#[test]
fn every_backend_carries_a_guest_and_gives_discarded_pages_back_under_it() {
    for backend in [Backend::Anonymous, Backend::Memfd, Backend::File(file())] {
        let what = format!("{backend:?}");
        let gate = Probe::new();
        let Some(plan) = Plan::with_memory(writer(), with_backend(backend)) else { return };
        let guest = plan.port(0x10, 4, gate.clone()).run();
        let said = || loop {
            if let super::guest::Access::Write(_, data) = gate.next() {
                return u32::from_le_bytes(data.try_into().unwrap());
            }
        };
        assert_eq!(said(), 0x1122_3344, "{what}");
        assert_eq!(guest.word(PLACE), 0x1122_3344, "{what}");
        discard(&guest.ram, PLACE, PAGE).unwrap();
        // The next answers may have been on their way.
        while said() != 0 {}
        guest.ram.write_obj(9u32, GuestAddress(PLACE)).unwrap();
        while said() != 9 {}
        assert!(guest.park());
        clear(&guest.ram).unwrap();
        for addr in [0, PLACE, RAM_BYTES - 4] {
            assert_eq!(guest.word(addr), 0, "{what}");
        }
    }
}

#[test]
fn anonymous_ram_is_aligned_for_huge_pages() {
    // Other tests map and unmap meanwhile, so not every one need succeed.
    let aligned = (0..20u64).any(|step| {
        let regions = vec![Region { guest_addr: 0, bytes: (2 << 20) * (1 + step) }];
        let ram = guest_ram(MemoryConfig { regions, ..anonymous() }).unwrap();
        (ram.iter().next().unwrap().as_ptr() as usize).is_multiple_of(2 << 20)
    });
    assert!(aligned);
}

#[test]
fn regions_are_mapped_where_they_are_said() {
    for backend in [Backend::Anonymous, Backend::Memfd] {
        let regions =
            vec![Region { guest_addr: 0, bytes: 3 << 20 }, Region { guest_addr: 4 << 30, bytes: 5 << 20 }];
        let ram = guest_ram(MemoryConfig { regions: regions.clone(), ..with_backend(backend) }).unwrap();
        let found: Vec<Region> = ram
            .iter()
            .map(|region| Region { guest_addr: region.start_addr().0, bytes: region.len() })
            .collect();
        assert_eq!(found, regions);
        ram.write_obj(7u64, GuestAddress((4 << 30) + (5 << 20) - 8)).unwrap();
        assert!(ram.write_obj(7u8, GuestAddress(3 << 20)).is_err());
    }
}

/// What the kernel notes of the mapping that has `addr`. Mappings of tests side by side may have become one.
fn flags(addr: u64) -> String {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let ends = range.map(|(from, to)| (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)));
        if let Some((Ok(from), Ok(to))) = ends {
            found = (from..to).contains(&addr);
        }
        if found && line.starts_with("VmFlags:") {
            return line.to_owned();
        }
    }
    panic!("nothing is mapped at {addr:#x}")
}

/// How many pages are present.
fn resident(ram: &GuestRam) -> usize {
    let region = ram.iter().next().unwrap();
    let mut pages = vec![0u8; region.size() / PAGE as usize];
    // SAFETY: the range is the region's, and there is a byte for each of its pages.
    assert_eq!(unsafe { libc::mincore(region.as_ptr().cast(), region.size(), pages.as_mut_ptr()) }, 0);
    pages.iter().filter(|page| **page & 1 == 1).count()
}

/// RAM of each kind, with its name.
fn every_backend() -> impl Iterator<Item = (String, MemoryConfig)> {
    let backends = [Backend::Anonymous, Backend::Memfd, Backend::File(file())];
    backends.into_iter().map(|backend| (format!("{backend:?}"), with_backend(backend)))
}

#[test]
fn ram_is_kept_out_of_children_and_dumps_at_first_and_after_it_was_given_back() {
    let kept_out = |ram: &GuestRam, addr: u64, what: &str| {
        let flags = flags(ram.iter().next().unwrap().as_ptr() as u64 + addr);
        assert!(flags.contains(" dc ") && flags.contains(" dd "), "{what}, {addr:#x}: {flags}");
    };
    for (what, config) in every_backend() {
        let ram = guest_ram(config).unwrap();
        kept_out(&ram, PLACE, &what);
        discard(&ram, PLACE, PAGE).unwrap();
        for addr in [PLACE - PAGE, PLACE, PLACE + PAGE] {
            kept_out(&ram, addr, &format!("{what}, a page discarded"));
        }
        clear(&ram).unwrap();
        for addr in [0, PLACE, RAM_BYTES - PAGE] {
            kept_out(&ram, addr, &format!("{what}, cleared"));
        }
    }
}

#[test]
fn huge_pages_are_asked_for_wherever_pages_are_no_files() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        eprintln!("Skipped: this kernel has no transparent huge pages");
        return;
    }
    let asked = |ram: &GuestRam, addr: u64| {
        flags(ram.iter().next().unwrap().as_ptr() as u64 + addr).split(' ').any(|flag| flag == "hg")
    };
    for (what, config) in every_backend() {
        let of_file = matches!(config.backend, Backend::File(_));
        let ram = guest_ram(config).unwrap();
        assert_eq!(asked(&ram, PLACE), !of_file, "{what}");
        discard(&ram, PLACE, PAGE).unwrap();
        assert_eq!((asked(&ram, PLACE), asked(&ram, PLACE + PAGE)), (true, !of_file), "{what}, discarded");
        clear(&ram).unwrap();
        assert!(asked(&ram, PLACE), "{what}, cleared");
    }
}

#[test]
fn ram_is_populated_if_so_asked() {
    for (prealloc, pages) in [(false, 0), (true, (RAM_BYTES / PAGE) as usize)] {
        let ram = guest_ram(MemoryConfig { prealloc, ..anonymous() }).unwrap();
        assert_eq!(resident(&ram), pages);
    }
}

#[test]
fn much_ram_is_populated_to_its_last_page() {
    // By two threads, where there are two processors.
    let bytes = (512 << 20) + 3 * PAGE;
    let regions = vec![Region { guest_addr: 0, bytes }];
    let ram = guest_ram(MemoryConfig { prealloc: true, regions, ..anonymous() }).unwrap();
    assert_eq!(resident(&ram) as u64, bytes / PAGE);
}

#[test]
fn memfd_is_shared_and_sealed_and_a_files_pages_stay_its_own() {
    let ram = guest_ram(with_backend(Backend::Memfd)).unwrap();
    let shared = ram.iter().next().unwrap().file_offset().unwrap().arc().clone();
    ram.write_obj(0x55u8, GuestAddress(5)).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&*shared, &mut byte, 5).unwrap();
    assert_eq!(byte, [0x55]);
    // SAFETY: no pointers are passed.
    assert_eq!(unsafe { libc::ftruncate(shared.as_raw_fd(), 4096) }, -1);

    let file = file();
    let ram = guest_ram(with_backend(Backend::File(file.try_clone().unwrap()))).unwrap();
    assert_eq!(ram.read_obj::<u8>(GuestAddress(PLACE)).unwrap(), 0x77);
    ram.write_obj(1u8, GuestAddress(PLACE)).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, PLACE).unwrap();
    assert_eq!(byte, [0x77]);
}

#[test]
fn memory_that_cannot_be_is_refused_by_name() {
    let refused = |config| guest_ram(config).unwrap_err().to_string();
    let region = |guest_addr, bytes| Region { guest_addr, bytes };
    for regions in [
        vec![],
        vec![region(0, 0)],
        vec![region(0, 4097)],
        vec![region(1, 4096)],
        vec![region(0, 8192), region(4096, 4096)],
        vec![region(8192, 4096), region(0, 4096)],
        vec![region(u64::MAX - 4095, 8192)],
    ] {
        assert!(refused(MemoryConfig { regions, ..anonymous() }).starts_with("RAM"));
    }
    let huge = MemoryConfig { huge_pages: HugePages::TwoMiB, regions: vec![region(0, 4096)], ..anonymous() };
    assert!(refused(huge).contains("0x200000"));
    let short = file();
    short.set_len(4096).unwrap();
    assert!(refused(with_backend(Backend::File(short))).starts_with("File for RAM has 4096 bytes"));
}

#[test]
fn huge_pages_of_hugetlbfs_carry_a_guest_where_there_are_some() {
    for backend in [Backend::Anonymous, Backend::Memfd] {
        let what = format!("{backend:?}");
        let config = MemoryConfig { huge_pages: HugePages::TwoMiB, ..with_backend(backend) };
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        if free < RAM_BYTES >> 21 {
            let failure = guest_ram(config).map(|_| ()).unwrap_err();
            assert_eq!(failure.errno(), libc::ENOMEM, "{what}: {failure}");
            assert!(failure.to_string().contains("huge pages"), "{what}: {failure}");
            continue;
        }
        let code = code!("inc dword ptr [0x3000]", "2:", "hlt", "jmp 2b");
        let Some(plan) = Plan::with_memory(code, config) else { return };
        let guest = plan.run();
        assert_eq!(guest.changed(WORD, 0), 1, "{what}");
    }
}

#[test]
fn dirty_log_has_the_pages_that_the_guest_wrote() {
    let code = code!(
        "2:",
        "in al, 0x10",
        "mov dword ptr [0x200000], 1",
        "mov dword ptr [0x10003000], 1",
        "out 0x10, al",
        "jmp 2b",
    );
    let gate = Probe::new();
    // Two regions, which are two slots and two bitmaps.
    let second = 0x1000_0000;
    let regions =
        vec![Region { guest_addr: 0, bytes: RAM_BYTES }, Region { guest_addr: second, bytes: RAM_BYTES }];
    let Some(plan) = Plan::with_memory(code, MemoryConfig { regions, ..anonymous() }) else { return };
    let mut guest = plan.port(0x10, 1, gate.clone()).run();
    let round = || while !matches!(gate.next(), super::guest::Access::Write(..)) {};
    round();
    assert!(guest.vm.take_dirty_log().is_err());
    guest.vm.set_dirty_log(true).unwrap();
    let dirty = |log: &[Vec<u64>]| -> Vec<u64> {
        let pages = |bits: &[u64]| {
            let written =
                (0..RAM_BYTES / PAGE).filter(|page| bits[*page as usize / 64] >> (page % 64) & 1 == 1);
            written.map(|page| page * PAGE).collect::<Vec<u64>>()
        };
        assert_eq!(log.len(), 2);
        pages(&log[0]).into_iter().chain(pages(&log[1]).into_iter().map(|at| second + at)).collect()
    };
    for _ in 0..2 {
        // What was said before does not count; then one that was under way, and one as a whole.
        while gate.try_next().is_some() {}
        round();
        round();
        assert!(guest.park());
        assert_eq!(dirty(&guest.vm.take_dirty_log().unwrap()), [0x20_0000, second + 0x3000]);
        assert!(dirty(&guest.vm.take_dirty_log().unwrap()).is_empty());
        guest.vcpus.release().unwrap();
    }
    guest.vm.set_dirty_log(false).unwrap();
    round();
}
