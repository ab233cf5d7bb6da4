//! The block device against the mock driver and a real file.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use strato_virtio::mock::{MockNotifier, MockQueue, SeededRandom, guest_ram};
use strato_virtio::{DeviceHost, RingStart, VIRTIO_F_VERSION_1};

use super::*;

const SECTORS: u64 = 64;
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const STATUS: u64 = 0x9000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

struct Machine {
    host: DeviceHost,
    driver: MockQueue,
    file: File,
}

fn machine(readonly: bool) -> Machine {
    // SAFETY: the name is a literal with a terminator; the descriptor returned is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC)) };
    let content: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 512) as u8 + 1).collect();
    file.write_all_at(&content, 0).unwrap();
    let disk = Disk::new(file.try_clone().unwrap(), FlushPolicy::Sync).unwrap();
    let block = Block::new(BlockConfig { disk, readonly, serial: "disk-1".into() }).unwrap();
    let ram = guest_ram(1 << 20);
    let (driver, _) = MockQueue::new(&ram, 0x1000, 64);
    let mut host = DeviceHost::new(Box::new(block), Box::new(MockNotifier::default())).unwrap();
    host.set_memory(ram).unwrap();
    assert!(host.set_features(VIRTIO_F_VERSION_1));
    let layout = driver.layout();
    host.start_ring(RingStart { queue: 0, layout, next_avail: 0, kick: None }).unwrap();
    Machine { host, driver, file }
}

/// One request; returns its status (255: none was written) and the used length.
fn ask(m: &mut Machine, operation: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
    let mut header = operation.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    m.driver.write(HEADER, &header);
    m.driver.write(STATUS, &[255]);
    let mut buffers = vec![(HEADER, 16, false)];
    buffers.extend(data);
    buffers.push((STATUS, 1, true));
    m.driver.offer(&buffers).unwrap();
    m.host.kick(0);
    let (_, len) = m.driver.take_used().unwrap();
    (m.driver.read(STATUS, 1)[0], len)
}

fn range(m: &mut Machine, operation: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
    let mut raw = sector.to_le_bytes().to_vec();
    raw.extend(sectors.to_le_bytes());
    raw.extend(flags.to_le_bytes());
    m.driver.write(DATA, &raw);
    ask(m, operation, 0, &[(DATA, 16, false)]).0
}

fn on_disk(m: &Machine, sector: u64) -> [u8; 512] {
    let mut data = [0; 512];
    m.file.read_exact_at(&mut data, sector * 512).unwrap();
    data
}

#[test]
fn sectors_are_read_and_written_through_many_buffers() {
    let mut m = machine(false);
    assert_eq!(ask(&mut m, IN, 5, &[(DATA, 100, true), (DATA + 4096, 924, true)]), (0, 1025));
    assert_eq!(m.driver.read(DATA, 100), [6; 100]);
    assert_eq!(m.driver.read(DATA + 4096 + 412, 512), [7; 512]);
    m.driver.write(DATA, &[0xaa; 1024]);
    assert_eq!(ask(&mut m, OUT, 62, &[(DATA, 1000, false), (DATA + 1000, 24, false)]), (0, 1));
    assert_eq!((on_disk(&m, 61), on_disk(&m, 62), on_disk(&m, 63)), ([62; 512], [0xaa; 512], [0xaa; 512]));
    assert_eq!(ask(&mut m, FLUSH, 0, &[]).0, 0);
}

#[test]
fn accesses_beyond_the_end_or_of_odd_length_fail_and_change_nothing() {
    let mut m = machine(false);
    for (sector, len) in [(64, 512), (63, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (0, 0)] {
        assert_eq!(ask(&mut m, IN, sector, &[(DATA, len, true)]).0, 1, "{sector} {len}");
        assert_eq!(ask(&mut m, OUT, sector, &[(DATA, len, false)]).0, 1, "{sector} {len}");
    }
    assert_eq!(m.file.metadata().unwrap().len(), SECTORS * 512);
    assert_eq!(on_disk(&m, 63), [64; 512]);
    assert!(m.host.fault().is_none());
}

#[test]
fn read_only_disk_refuses_every_kind_of_write() {
    let mut m = machine(true);
    assert_eq!(ask(&mut m, OUT, 0, &[(DATA, 512, false)]).0, 1);
    assert_eq!(range(&mut m, DISCARD, 0, 8, 0), 1);
    assert_eq!(range(&mut m, WRITE_ZEROES, 0, 8, 0), 1);
    assert_eq!(ask(&mut m, IN, 0, &[(DATA, 512, true)]).0, 0);
    assert_eq!(on_disk(&m, 0), [1; 512]);
}

#[test]
fn discard_and_write_zeroes_work_within_the_disk_only() {
    let mut m = machine(false);
    for (operation, first, flags) in [(DISCARD, 8, 0), (WRITE_ZEROES, 16, 0), (WRITE_ZEROES, 24, 1)] {
        assert_eq!(range(&mut m, operation, first, 8, flags), 0);
        assert_eq!((on_disk(&m, first - 1)[0], on_disk(&m, first + 8)[0]), (first as u8, first as u8 + 9));
        assert_eq!((on_disk(&m, first), on_disk(&m, first + 7)), ([0; 512], [0; 512]));
        // Restored for the neighbours' checks.
        for sector in first..first + 8 {
            m.file.write_all_at(&[sector as u8 + 1; 512], sector * 512).unwrap();
        }
        assert_eq!(range(&mut m, operation, 60, 5, flags), 1);
        assert_eq!(range(&mut m, operation, u64::MAX, 1, flags), 1);
        assert_eq!(range(&mut m, operation, 0, u32::MAX, flags), 1);
        assert_eq!(range(&mut m, operation, 0, 1, 2), 2, "unknown flags");
    }
}

#[test]
fn serial_is_told_and_unknown_operations_are_unsupported() {
    let mut m = machine(false);
    assert_eq!(ask(&mut m, GET_ID, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(m.driver.read(DATA, 7), b"disk-1\0");
    assert_eq!(ask(&mut m, GET_ID, 0, &[(DATA, 19, true)]).0, 1);
    assert_eq!(ask(&mut m, 77, 0, &[]).0, 2);
}

#[test]
fn requests_without_room_for_header_or_status_come_back_empty() {
    let mut m = machine(false);
    for buffers in
        [&[(HEADER, 15, false), (STATUS, 1, true)][..], &[(HEADER, 16, false)], &[(STATUS, 9, true)]]
    {
        m.driver.offer(buffers).unwrap();
        m.host.kick(0);
        assert_eq!(m.driver.take_used().map(|used| used.1), Some(0));
    }
    assert!(m.host.fault().is_none());
}

#[test]
fn file_that_shrinks_gives_errors() {
    let mut m = machine(false);
    m.file.set_len(4096).unwrap();
    assert_eq!(ask(&mut m, IN, 7, &[(DATA, 1024, true)]).0, 1);
    assert_eq!(ask(&mut m, IN, 7, &[(DATA, 512, true)]).0, 0);
}

#[test]
fn state_of_another_disk_is_refused() {
    let mut m = machine(false);
    let saved = m.host.save();
    assert!(m.host.restore(&saved).is_ok());
    m.file.set_len(512).unwrap();
    let disk = Disk::new(m.file.try_clone().unwrap(), FlushPolicy::Ignore).unwrap();
    let other = Block::new(BlockConfig { disk, readonly: false, serial: String::new() }).unwrap();
    let mut other = DeviceHost::new(Box::new(other), Box::new(MockNotifier::default())).unwrap();
    assert!(other.restore(&saved).is_err());
}

#[test]
fn random_requests_never_harm_the_rest_of_the_file() {
    for seed in 0..100 {
        let mut m = machine(false);
        let mut random = SeededRandom::new(seed);
        for _ in 0..200 {
            let operation = [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99][random.below(7) as usize];
            let sector = [random.below(70), random.next_u64()][random.below(2) as usize];
            let len = [random.below(9) * 512, random.below(5000)][random.below(2) as usize] as u32;
            let writable =
                if random.below(8) == 0 { operation != IN } else { operation == IN || operation == GET_ID };
            m.driver.write(DATA, &random.next_u64().to_le_bytes());
            let (status, used) = ask(&mut m, operation, sector, &[(DATA, len, writable)]);
            assert!(status <= 2 && used <= len + 1, "seed {seed}");
        }
        assert!(m.host.fault().is_none());
        assert_eq!(m.file.metadata().unwrap().len(), SECTORS * 512, "seed {seed}");
    }
}
