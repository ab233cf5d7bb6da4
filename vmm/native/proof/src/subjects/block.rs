//! The block device on a file in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use strato_devices::block::{Block, BlockConfig};
use strato_virtio::DeviceCore;

use super::scratch::memory_file;
use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

const SECTORS: u64 = 256;

struct Storage {
    file: File,
    readonly: bool,
}

pub(crate) fn make(readonly: bool) -> Box<dyn Subject> {
    let file = memory_file(SECTORS * 512);
    file.write_all_at(b"first sector", 0).unwrap();
    Box::new(Storage { file, readonly })
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
        let file = self.file.try_clone().unwrap();
        Box::new(Block::new(BlockConfig { readonly, serial, ..BlockConfig::new(file) }).unwrap())
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Requests]
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

    fn probe(&mut self, machine: &mut Machine) {
        self.file.write_all_at(b"first sector", 0).unwrap();
        let answer = machine.ask(0, &header(0, 0), 513);
        assert_eq!((&answer[..12], answer[512]), (&b"first sector"[..], 0));
    }
}
