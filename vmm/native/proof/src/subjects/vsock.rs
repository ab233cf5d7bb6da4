//! The socket device, with host programs that come and go.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use strato_devices::vsock::{Header, Op, Vsock, VsockConfig};
use strato_virtio::DeviceCore;

use super::scratch::Scratch;
use crate::choices::Choices;
use crate::machine::Machine;
use crate::message_sockets;
use crate::subject::{QueueUse, Request, Subject};

const GUEST_CID: u64 = 3;
/// Where host programs listen: at all but the last with streams, there with messages.
const PORTS: u64 = 4;

const TYPE_STREAM: u16 = 1;
const TYPE_SEQPACKET: u16 = 2;

struct Sockets {
    scratch: Scratch,
    listeners: Vec<UnixListener>,
    programs: Vec<UnixStream>,
}

pub(crate) fn make() -> Box<dyn Subject> {
    let scratch = Scratch::new("vsock");
    let listeners = (0..PORTS).map(|port| {
        let path = scratch.path().join(format!("v_{port}"));
        let listener = if port + 1 < PORTS {
            UnixListener::bind(path).unwrap()
        } else {
            message_sockets::listen(&path).unwrap()
        };
        listener.set_nonblocking(true).unwrap();
        listener
    });
    Box::new(Sockets { listeners: listeners.collect(), scratch, programs: Vec::new() })
}

fn header(op: Op, host_port: u32, guest_port: u32, len: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: 2,
        src_port: guest_port,
        dst_port: host_port,
        len,
        socket_type: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    }
}

impl Sockets {
    fn path(&self) -> PathBuf {
        self.scratch.path().join("v")
    }
}

impl Subject for Sockets {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let config = VsockConfig { guest_cid: GUEST_CID, path: self.path(), max_connections: 16 };
        Box::new(Vsock::new(config).unwrap())
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Buffers, QueueUse::Requests, QueueUse::Buffers]
    }

    fn request(&self, choices: &mut Choices<'_>, queue: u16) -> Request {
        match queue {
            0 => Request { readable: Vec::new(), writable: choices.one_of(&[4096, 3776, 100, 45, 44, 0]) },
            1 => {
                let data = if choices.once_in(2) { choices.below(3000) as u32 } else { 0 };
                let op = choices.one_of(&[
                    Op::Request,
                    Op::Response,
                    Op::Reset,
                    Op::Shutdown,
                    Op::ReadWrite,
                    Op::ReadWrite,
                    Op::CreditUpdate,
                    Op::CreditRequest,
                ]);
                // Host-initiated connections get ports from 2^30 on.
                let host = choices.below(PORTS + 1) as u32 | u32::from(choices.once_in(4)) << 30;
                let mut packet = header(op, host, choices.below(4) as u32, data);
                packet.flags = choices.below(4) as u32;
                if choices.once_in(if u64::from(host) + 1 == PORTS { 1 } else { 8 }) {
                    packet.socket_type = TYPE_SEQPACKET;
                }
                packet.fwd_cnt = if choices.once_in(3) { choices.number() as u32 } else { 0 };
                let mut readable = packet.to_bytes().to_vec();
                if choices.once_in(6) {
                    let at = choices.below(44) as usize;
                    readable[at] ^= 1 << choices.below(8);
                }
                readable.resize(44 + data as usize, 0x5a);
                Request { readable, writable: 0 }
            }
            _ => Request { readable: Vec::new(), writable: choices.one_of(&[4, 4, 3, 16]) },
        }
    }

    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        match choices.below(6) {
            0 => self.programs.extend(self.listeners.iter().filter_map(|l| Some(l.accept().ok()?.0))),
            1 if !self.programs.is_empty() => {
                let index = choices.below(self.programs.len() as u64) as usize;
                self.programs.swap_remove(index);
            }
            2 => {
                // Fails when the listening core is gone for the moment.
                if let Ok(mut program) = UnixStream::connect(self.path()) {
                    let line = format!("CONNECT {}\nnoise", choices.below(4));
                    let _ = program.write_all(line.as_bytes());
                    self.programs.push(program);
                }
            }
            3 => {
                if let Ok(mut program) = message_sockets::connect(&self.scratch.path().join("v_seq")) {
                    let _ = program.write_all(format!("CONNECT {}\n", choices.below(4)).as_bytes());
                    self.programs.push(program);
                }
            }
            4 => {
                for program in &mut self.programs {
                    let _ = program.set_nonblocking(true);
                    let _ = program.write(&[7; 900]);
                }
            }
            _ => {
                for program in &mut self.programs {
                    let _ = program.set_nonblocking(true);
                    let _ = program.read(&mut [0; 900]);
                }
            }
        }
        self.programs.truncate(32);
    }

    fn probe(&mut self, machine: &mut Machine) {
        // A restored guest has to act on the reset first.
        for _ in 0..2 {
            machine.offer(2, &Request { readable: Vec::new(), writable: 4 }, &mut Choices::seeded(0));
            machine.kick(2);
        }
        // Nobody listens there.
        let request = header(Op::Request, 99, 7, 0).to_bytes();
        machine.ask(1, &request, 0);
        let deadline = machine.deadline();
        loop {
            let raw = machine.ask_until(0, &[], 4096, deadline);
            let answer = Header::parse(raw.first_chunk().unwrap());
            if answer.op == Op::Reset && (answer.src_port, answer.dst_port) == (99, 7) {
                break;
            }
        }
    }
}
