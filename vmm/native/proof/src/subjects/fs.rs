//! The shared file system on a folder of the host.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Once};

use strato_devices::fs::passthrough::{Passthrough, PassthroughConfig, Root, ShareConfig};
use strato_devices::fs::window::{ReservedWindow, Window, page_size};
use strato_devices::fs::{Fs, FsConfig};
use strato_virtio::{DeviceCore, SaveObstacle};

use super::scratch::Scratch;
use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

/// Largest file that a random request may make: it should not fill the machine.
const FILE_LIMIT: u64 = 64 << 20;

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const OPEN_DIR: u32 = 27;
const READ_DIR: u32 = 28;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const SETUPMAPPING: u32 = 48;
const REMOVEMAPPING: u32 = 49;

/// Short, so that mappings meet.
pub(crate) const WINDOW_LENGTH: u64 = 1 << 16;

const NAMES: [&[u8]; 8] = [b"a\0", b"dir\0", b"..\0", b"x/y\0", b"\0", b"user.k\0", b"link\0", b"open"];

struct Share {
    scratch: Scratch,
    threads: usize,
    window: Option<u64>,
}

/// A share served with so many threads, and with a window of so many bytes if it has one.
pub(crate) fn make(threads: usize, window: Option<u64>) -> Box<dyn Subject> {
    static LIMITED: Once = Once::new();
    LIMITED.call_once(|| {
        let limit = libc::rlimit { rlim_cur: FILE_LIMIT, rlim_max: FILE_LIMIT };
        // SAFETY: the limit is a local; a signal is ignored that would end the process at a larger file.
        unsafe {
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    });
    let scratch = Scratch::new("fs");
    std::fs::write(scratch.path().join("a"), vec![7; 9000]).unwrap();
    std::fs::create_dir(scratch.path().join("dir")).unwrap();
    Box::new(Share { scratch, threads, window })
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut raw = (40 + body.len() as u32).to_le_bytes().to_vec();
    raw.extend_from_slice(&opcode.to_le_bytes());
    raw.extend_from_slice(&77u64.to_le_bytes());
    raw.extend_from_slice(&node.to_le_bytes());
    raw.extend_from_slice(&[0; 16]);
    raw.extend_from_slice(body);
    raw
}

/// INIT as Linux 6.12 says it.
fn init() -> Vec<u8> {
    let mut body = Vec::new();
    for field in [7u32, 41, 1 << 17, 0x7fff_ffff, 0x1ff] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    body.resize(64, 0);
    message(INIT, 0, &body)
}

/// Numbers as they stand in bodies: node, handle, offset, length.
fn number(choices: &mut Choices<'_>) -> u64 {
    match choices.below(4) {
        0 | 1 => choices.below(6),
        2 => choices.below(10_000),
        _ => choices.one_of(&[u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 62, u64::from(u32::MAX)]),
    }
}

/// Offsets and lengths in the window and in what is mapped there.
fn place(choices: &mut Choices<'_>) -> u64 {
    if choices.once_in(8) { number(choices) } else { choices.below(18) * page_size() }
}

fn body(choices: &mut Choices<'_>, opcode: u32) -> Vec<u8> {
    let mut body = Vec::new();
    let mut word = |value: u32| body.extend_from_slice(&value.to_le_bytes());
    match opcode {
        LOOKUP => body.extend_from_slice(choices.one_of(&NAMES)),
        OPEN | OPEN_DIR => [choices.below(4) as u32, 0].into_iter().for_each(word),
        CREATE => {
            [choices.below(4) as u32 | 0x40, 0o644, 0, 0].into_iter().for_each(&mut word);
            body.extend_from_slice(choices.one_of(&NAMES));
        }
        READ | READ_DIR => {
            let (handle, offset) = (number(choices), number(choices));
            for field in [handle, offset] {
                word(field as u32);
                word((field >> 32) as u32);
            }
            [choices.below(5000) as u32, 0, 0, 0, 0, 0].into_iter().for_each(word);
        }
        SETUPMAPPING => {
            let place = [(); 3].map(|()| place(choices));
            let flags = choices.one_of(&[2, 3, 3, 7]);
            for field in [u64::MAX, place[0], place[1], flags, place[2]] {
                body.extend_from_slice(&field.to_le_bytes());
            }
        }
        REMOVEMAPPING => {
            let count = choices.below(4) as u32;
            word(count + u32::from(choices.once_in(8)));
            for _ in 0..count {
                body.extend_from_slice(&place(choices).to_le_bytes());
                body.extend_from_slice(&place(choices).to_le_bytes());
            }
        }
        WRITE => {
            let (handle, offset, len) = (number(choices), number(choices), choices.below(5000) as u32);
            for field in [handle, offset] {
                word(field as u32);
                word((field >> 32) as u32);
            }
            [len, 0, 0, 0, 0, 0].into_iter().for_each(&mut word);
            body.resize(body.len() + len as usize, 0x5a);
        }
        _ => {
            for _ in 0..choices.below(12) {
                match choices.below(4) {
                    0 => body.extend_from_slice(choices.one_of(&NAMES)),
                    1 => body.extend_from_slice(&(choices.below(1 << 12) as u32).to_le_bytes()),
                    2 => body.extend_from_slice(&[0; 8]),
                    _ => body.extend_from_slice(&number(choices).to_le_bytes()),
                }
            }
        }
    }
    body
}

/// A request that may map something or take it away, or makes a file known for it.
fn mapping(choices: &mut Choices<'_>) -> Vec<u8> {
    let (opcode, node) = match choices.below(10) {
        0 => return init(),
        1..=3 => return message(LOOKUP, 1, NAMES[0]),
        4 => (REMOVEMAPPING, 0),
        _ => (SETUPMAPPING, 2 + choices.below(4)),
    };
    message(opcode, node, &body(choices, opcode))
}

impl Subject for Share {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let mut open = OpenOptions::new();
        let folder: File = open.read(true).custom_flags(libc::O_DIRECTORY).open(self.scratch.path()).unwrap();
        let share = Root::Directory(ShareConfig::new(folder.into()));
        let host = Passthrough::new(PassthroughConfig::new(share).unwrap()).unwrap();
        let window = self.window.map(|len| Arc::new(ReservedWindow::new(len).unwrap()) as Arc<dyn Window>);
        let (tag, threads) = ("proof".to_owned(), self.threads);
        let config = FsConfig { tag, threads, window, ..FsConfig::default() };
        Box::new(Fs::new(config, Arc::new(host)).unwrap())
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Requests, QueueUse::Requests]
    }

    fn request(&self, choices: &mut Choices<'_>, _queue: u16) -> Request {
        let opcode = match choices.below(12) {
            0 => INIT,
            1..=6 => choices.one_of(&[LOOKUP, OPEN, READ, WRITE, OPEN_DIR, READ_DIR, CREATE, STATFS]),
            7 => choices.one_of(&[DESTROY, 2, 36, 42]),
            _ => choices.below(55) as u32,
        };
        let mut readable = match opcode {
            INIT => init(),
            _ if self.window.is_some() && choices.once_in(2) => mapping(choices),
            _ => message(opcode, number(choices), &body(choices, opcode)),
        };
        if choices.once_in(12) {
            let at = choices.below(readable.len() as u64) as usize;
            readable[at] = choices.number() as u8;
        }
        if choices.once_in(16) {
            readable.truncate(choices.below(readable.len() as u64) as usize);
        }
        Request { readable, writable: choices.one_of(&[0, 8, 16, 24, 144, 4096, 8192, 8192]) }
    }

    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        let path = self.scratch.path().join("a");
        // Whatever the guest made of it.
        if choices.once_in(2) {
            let _ = std::fs::remove_file(path);
        } else if std::fs::symlink_metadata(&path).is_err() {
            let _ = std::fs::write(path, b"new");
        }
    }

    /// A mounted share refers to files of the host that it came from.
    fn may_refuse_saved(&self, reason: &str, _config: &[u8]) -> bool {
        reason == SaveObstacle::MountedShare.to_string()
    }

    fn probe(&mut self, machine: &mut Machine) {
        let answer = machine.ask(1, &init(), 80);
        assert_eq!(answer[4..8], [0; 4], "INIT");
        let answer = machine.ask(1, &message(STATFS, 1, &[]), 96);
        assert_eq!((answer.len(), &answer[4..8]), (96, &[0; 4][..]), "STATFS");
        if self.window.is_some() {
            let fields = [2u32 | 0x40, 0o644, 0, 0].map(u32::to_le_bytes).concat();
            let answer = machine.ask(1, &message(CREATE, 1, &[&fields, &b"mapped\0"[..]].concat()), 160);
            let node = u64::from_le_bytes(answer[16..24].try_into().unwrap());
            let fields = [u64::MAX, 0, page_size(), 3, page_size()].map(u64::to_le_bytes).concat();
            let answer = machine.ask(1, &message(SETUPMAPPING, node, &fields), 16);
            let error = -i32::from_le_bytes(answer[4..8].try_into().unwrap());
            assert!(
                [0, libc::ENODEV].contains(&error),
                "SETUPMAPPING: {error}, on whatever file system this is"
            );
            let fields = [page_size(), page_size()].map(u64::to_le_bytes).concat();
            let answer =
                machine.ask(1, &message(REMOVEMAPPING, 0, &[&1u32.to_le_bytes()[..], &fields].concat()), 16);
            assert_eq!(answer[4..8], [0; 4], "REMOVEMAPPING");
        }
    }
}
