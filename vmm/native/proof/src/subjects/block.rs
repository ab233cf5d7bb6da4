//! The block device on a file on a disk, past the page cache, so that requests take their time; and on one in
//! memory, where they are done at once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use strato_devices::block::{Block, BlockConfig, BlockControl, CacheMode, EngineChoice};
use strato_devices::{BucketConfig, Limits};
use strato_virtio::DeviceCore;
use strato_virtio::record::RecordError;

use super::scratch::memory_file;
use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

const SECTORS: u64 = 256;

struct Storage {
    file: File,
    cache: CacheMode,
    readonly: bool,
    engine: EngineChoice,
    num_queues: u16,
    limits: Limits,
    control: Option<BlockControl>,
}

fn storage() -> Storage {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE);
    let file = options.open(std::env::temp_dir()).unwrap();
    file.set_len(SECTORS * 512).unwrap();
    file.write_all_at(b"first sector", 0).unwrap();
    let (cache, engine) = (CacheMode::Direct, EngineChoice::Auto);
    Storage { file, cache, readonly: false, engine, num_queues: 1, limits: Limits::default(), control: None }
}

pub(crate) fn make() -> Box<dyn Subject> {
    Box::new(storage())
}

fn in_memory() -> Storage {
    let file = memory_file(SECTORS * 512);
    file.write_all_at(b"first sector", 0).unwrap();
    Storage { file, cache: CacheMode::Writeback, ..storage() }
}

pub(crate) fn make_readonly() -> Box<dyn Subject> {
    Box::new(Storage { readonly: true, ..in_memory() })
}

/// Two queues, threads instead of io_uring.
pub(crate) fn make_pool() -> Box<dyn Subject> {
    Box::new(Storage { engine: EngineChoice::Pool, num_queues: 2, ..in_memory() })
}

/// Two queues that share a limit: a few requests at once, then one in some hundred microseconds.
pub(crate) fn make_limited() -> Box<dyn Subject> {
    let operations = Some(BucketConfig { rate: 5_000, burst: 2 });
    let bandwidth = Some(BucketConfig { rate: 32 << 20, burst: 4096 });
    let limits = Limits { bandwidth, operations };
    Box::new(Storage { num_queues: 2, limits, ..in_memory() })
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut raw = kind.to_le_bytes().to_vec();
    raw.extend_from_slice(&[0; 4]);
    raw.extend_from_slice(&sector.to_le_bytes());
    raw
}

impl Subject for Storage {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let (readonly, serial) = (self.readonly, "proof".to_owned());
        let (engine, num_queues) = (self.engine, self.num_queues);
        // An open file description of its own: the one here stays as it is.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (cache, limits) = (self.cache, self.limits);
        let config =
            BlockConfig { limits, cache, readonly, serial, engine, num_queues, ..BlockConfig::new(file) };
        let block = Block::new(config).unwrap();
        self.control = Some(block.control());
        Box::new(block)
    }

    fn queues(&self) -> &'static [QueueUse] {
        if self.num_queues == 1 { &[QueueUse::Requests] } else { &[QueueUse::Requests, QueueUse::Requests] }
    }

    /// The disk becomes smaller or larger, and the device may hear of it.
    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        if choices.once_in(4) {
            self.file.set_len(512 * (1 + choices.below(SECTORS * 2))).unwrap();
        }
        if let Some(control) = &self.control
            && choices.once_in(4)
        {
            control.resize().unwrap();
        }
    }

    fn request(&self, choices: &mut Choices<'_>, _queue: u16) -> Request {
        // IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, and one that is not there.
        let kind = choices.one_of(&[0, 0, 1, 1, 4, 8, 11, 13, 77]);
        let sector = if choices.once_in(8) { choices.number() } else { choices.below(SECTORS + 2) };
        let mut readable = header(kind, sector);
        let mut writable = 1;
        match kind {
            0 => writable += 512 * choices.below(9) as u32,
            8 => writable += 20,
            1 => readable.resize(16 + 512 * choices.below(9) as usize, 0x5a),
            11 | 13 => {
                for _ in 0..choices.below(3) {
                    readable.extend_from_slice(&choices.below(SECTORS + 2).to_le_bytes());
                    readable.extend_from_slice(&(choices.below(SECTORS) as u32).to_le_bytes());
                    readable.extend_from_slice(&(choices.below(3) as u32).to_le_bytes());
                }
            }
            _ => {}
        }
        if choices.once_in(10) {
            readable.truncate(choices.below(40) as usize);
        }
        Request { readable, writable }
    }

    /// A disk of another size than the saved one's is another disk.
    fn may_refuse_saved(&self, reason: &str, config: &[u8]) -> bool {
        let told = u64::from_le_bytes(config[..8].try_into().unwrap());
        let is = self.file.metadata().unwrap().len() / 512;
        told != is && reason == RecordError::Value("capacity of the disk").to_string()
    }

    fn probe(&mut self, machine: &mut Machine) {
        self.file.set_len(SECTORS * 512).unwrap();
        self.file.write_all_at(b"first sector", 0).unwrap();
        let answer = machine.ask(0, &header(0, 0), 513);
        assert_eq!((&answer[..12], answer[512]), (&b"first sector"[..], 0));
    }
}
