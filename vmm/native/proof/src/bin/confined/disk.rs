//! A disk, by io_uring and by threads, in each of its cache modes, with a limit.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use strato_devices::block::{Block, BlockConfig, CacheMode, EngineChoice};
use strato_devices::{BucketConfig, Limits};

use super::devices::Driver;

const SECTORS: u64 = 4096;

// virtio 1.2, section 5.2.6
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut raw = kind.to_le_bytes().to_vec();
    raw.extend_from_slice(&[0; 4]);
    raw.extend_from_slice(&sector.to_le_bytes());
    raw
}

fn segment(kind: u32, sector: u64, count: u32) -> Vec<u8> {
    let mut raw = header(kind, 0);
    raw.extend_from_slice(&sector.to_le_bytes());
    raw.extend_from_slice(&count.to_le_bytes());
    raw.extend_from_slice(&0u32.to_le_bytes());
    raw
}

fn image() -> File {
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir()).unwrap();
    file.write_all(&vec![7; SECTORS as usize * 512]).unwrap();
    file
}

fn again(file: &File, flags: i32) -> File {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn requests(driver: &mut Driver) {
    let done = |answer: &[u8]| assert_eq!(answer.last(), Some(&0));
    for sector in [0, 64, 128] {
        // To one place and to several.
        done(&driver.ask(0, &header(IN, sector), 512 + 1));
        done(&driver.ask(0, &header(IN, sector), 4096 + 1));
        let mut write = header(OUT, sector);
        write.resize(16 + 4096, 9);
        done(&driver.ask(0, &write, 1));
    }
    done(&driver.ask(0, &header(FLUSH, 0), 1));
    done(&driver.ask(0, &segment(DISCARD, 256, 8), 1));
    done(&driver.ask(0, &segment(WRITE_ZEROES, 512, 8), 1));
}

fn disk(file: &File, cache: CacheMode, engine: EngineChoice) {
    let flags = if matches!(cache, CacheMode::Direct) { libc::O_DIRECT } else { 0 };
    let config = BlockConfig { cache, engine, ..BlockConfig::new(again(file, flags)) };
    let block = Block::new(config).unwrap();
    let control = block.control();
    let mut driver = Driver::new("disk", Box::new(block), 1, u64::MAX);
    requests(&mut driver);
    file.set_len(2 * SECTORS * 512).unwrap();
    control.resize().unwrap();
    driver.hear_of_new_configuration();
    requests(&mut driver);
    let bandwidth = Some(BucketConfig { rate: 256 << 10, burst: 64 << 10 });
    control.set_limits(Limits { bandwidth, operations: None }).unwrap();
    for _ in 0..8 {
        requests(&mut driver);
    }
    // What is under way when the device is stopped comes to rest first.
    for sector in 0..4 {
        driver.offer(0, &header(IN, sector * 8), 4096 + 1);
    }
    driver.end();
}

/// An image that is in memory for good.
fn image_in_memory() -> File {
    // SAFETY: the name is a literal with a terminator.
    let raw = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(raw >= 0);
    // SAFETY: memfd_create returned it just now; nobody else owns it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    file.write_all(&vec![7; SECTORS as usize * 512]).unwrap();
    file
}

pub(crate) fn work() {
    disk(&image_in_memory(), CacheMode::Writeback, EngineChoice::Auto);
    for cache in [CacheMode::Writeback, CacheMode::Direct] {
        disk(&image(), cache, EngineChoice::Auto);
        disk(&image(), cache, EngineChoice::Pool);
    }
}

pub(crate) fn work_with_threads() {
    for cache in [CacheMode::Writeback, CacheMode::Direct] {
        disk(&image(), cache, EngineChoice::Pool);
    }
}
