//! A vhost-user front end that says anything, in messages that are mostly well-formed.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use strato_vhost_user::Shell;
use strato_virtio::Unobserved;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::choices::Choices;
use crate::subject::KINDS;
use crate::subjects::scratch::memory_file;

const MEMORY: u64 = 1 << 20;
/// Where the front end has it, in its own addresses.
const USER: u64 = 0x7000_0000;

/// One session of at most `messages` messages, or until `choices` end. The device has to let it go.
pub fn run(choices: &mut Choices<'_>, messages: usize) {
    let kind = &KINDS[choices.below(KINDS.len() as u64) as usize];
    let mut subject = (kind.make)();
    let shell = Shell::new("proof", subject.core(), Arc::new(Unobserved)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let memory = memory_file(MEMORY);
    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| shell.serve(theirs, &mut |_| {}).unwrap());
        for _ in 0..messages {
            if choices.exhausted() {
                break;
            }
            if choices.once_in(6) {
                let mut raw = [0; 64];
                choices.fill(&mut raw);
                memory.write_all_at(&raw, choices.below(MEMORY - 64)).unwrap();
                let _ = eventfd.write(1);
            }
            let (request, body) = message(choices);
            let fds: Vec<RawFd> = match (request, choices.below(16)) {
                (_, 0) => vec![memory.as_raw_fd(), eventfd.as_raw_fd()],
                (_, 1) => Vec::new(),
                (5, _) => vec![memory.as_raw_fd(); usize::from(body.first().copied().unwrap_or(0)) % 8],
                (12..=14, _) => vec![eventfd.as_raw_fd()],
                (21, _) => vec![ours.as_raw_fd()],
                _ => Vec::new(),
            };
            let flags = if choices.once_in(20) { choices.number() as u32 } else { 1 };
            let size = if choices.once_in(20) { choices.length() } else { body.len() as u32 };
            let mut raw = Vec::new();
            [request, flags, size].iter().for_each(|field| raw.extend_from_slice(&field.to_ne_bytes()));
            raw.extend_from_slice(&body);
            if ours.send_with_fds(&[raw.as_slice()], &fds).is_err() {
                break;
            }
        }
        ours.shutdown(Shutdown::Write).unwrap();
        // Answers, until the device has hung up.
        let _ = (&ours).read_to_end(&mut Vec::new());
    });
}

/// An address of a ring or near one.
fn address(choices: &mut Choices<'_>) -> u64 {
    match choices.below(8) {
        0 => choices.number(),
        1 => USER + choices.below(MEMORY + 64),
        _ => USER + (choices.below(MEMORY) & !15),
    }
}

fn message(choices: &mut Choices<'_>) -> (u32, Vec<u8>) {
    let index = choices.below(4) as u32;
    let mut body = Vec::new();
    let mut word = |value: u32| body.extend_from_slice(&value.to_ne_bytes());
    let request = choices.one_of(&[1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 34]);
    match request {
        // SET_FEATURES, SET_PROTOCOL_FEATURES: mostly what makes the rest possible.
        2 | 16 => {
            let asked = if choices.once_in(4) { choices.number() } else { 1 << 32 | 1 << 30 };
            let asked = if request == 16 { asked | 0x223 } else { asked };
            word(asked as u32);
            word((asked >> 32) as u32);
        }
        5 => {
            let count = choices.below(4) as u32;
            word(count);
            word(0);
            for region in 0..count {
                let size = if choices.once_in(8) { choices.number() } else { MEMORY };
                let guest = if choices.once_in(4) { choices.number() } else { u64::from(region) * MEMORY };
                let offset = if choices.once_in(8) { choices.number() } else { 0 };
                for field in [guest, size, USER + u64::from(region) * MEMORY, offset] {
                    word(field as u32);
                    word((field >> 32) as u32);
                }
            }
        }
        // SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE.
        8 => [index, 1 << choices.below(18)].into_iter().for_each(word),
        10 => [index, choices.below(64) as u32].into_iter().for_each(word),
        11 => [index, 0].into_iter().for_each(word),
        18 => [index, choices.below(2) as u32].into_iter().for_each(word),
        9 => {
            word(index);
            word(0);
            for _ in 0..4 {
                let at = address(choices);
                word(at as u32);
                word((at >> 32) as u32);
            }
        }
        // SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR.
        12..=14 => [index, 0].into_iter().for_each(word),
        // GET_CONFIG, SET_CONFIG.
        24 | 25 => {
            let size = choices.below(80) as u32;
            [choices.below(80) as u32, size, 0].into_iter().for_each(word);
            body.resize(12 + size as usize, 0xff);
        }
        _ => {}
    }
    if choices.once_in(16) {
        let len = choices.below(64) as usize;
        body.resize(len, 0);
        choices.fill(&mut body);
    }
    (request, body)
}
