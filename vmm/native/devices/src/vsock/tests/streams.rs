//! A thousand streams at once, of random sizes, that close at random moments in random ways: not a byte is
//! lost or out of order.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use strato_virtio::mock::SeededRandom;

use super::super::queue::{SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::super::{Header, Op};
use super::guest::{Folder, Guest, packet, uds, uds_for};

const STREAMS: u32 = 1000;
const HOST_PORT: u32 = 7;

/// How a side ends after it has sent everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Says that it sends no more, and reads on.
    Half,
    /// Closes both directions.
    Full,
    /// Guest only: forgets the connection without a word of farewell.
    Reset,
}

/// Byte `offset` of what `id` sends; `side` tells the directions apart.
fn byte(id: u32, side: u32, offset: usize) -> u8 {
    (offset as u32).wrapping_mul(2_654_435_761).wrapping_add(id * 7919 + side * 104_729).rotate_left(9) as u8
}

fn chunk(id: u32, side: u32, offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|at| byte(id, side, at)).collect()
}

struct GuestEnd {
    id: u32,
    host_port: u32,
    open: bool,
    size: usize,
    sent: usize,
    room: u32,
    end: End,
    ended: bool,
    got: usize,
    window: u32,
    told: u32,
    peer_flags: u32,
    closed: bool,
}

struct HostEnd {
    id: u32,
    stream: Option<UnixStream>,
    /// What is still to be sent or read before data: the first line, the answer to it.
    greeting: Vec<u8>,
    answer_left: bool,
    answer: Vec<u8>,
    size: usize,
    sent: usize,
    end: End,
    ended: bool,
    got: usize,
    at_end: bool,
}

struct Plan {
    from_host: bool,
    guest_size: usize,
    host_size: usize,
    guest_end: End,
    host_end: End,
}

fn plan(random: &mut SeededRandom) -> Plan {
    let size = |random: &mut SeededRandom| match random.below(4) {
        0 => 0,
        1 => random.below(100) as usize,
        2 => random.below(20_000) as usize,
        _ => random.below(120_000) as usize,
    };
    Plan {
        from_host: random.below(2) == 0,
        guest_size: size(random),
        host_size: size(random),
        guest_end: [End::Half, End::Half, End::Full, End::Reset][random.below(4) as usize],
        host_end: if random.below(3) == 0 { End::Full } else { End::Half },
    }
}

impl HostEnd {
    /// Reads and writes a little. True if anything moved.
    fn step(&mut self, random: &mut SeededRandom) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut moved = false;
        if !self.greeting.is_empty() {
            let count = stream.write(&self.greeting).unwrap();
            self.greeting.drain(..count);
            moved = true;
        } else if self.sent < self.size && random.below(3) > 0 {
            let len = (self.size - self.sent).min(1 + random.below(30_000) as usize);
            match stream.write(&chunk(self.id, 1, self.sent, len)) {
                Ok(count) => {
                    self.sent += count;
                    moved = count > 0;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The guest closed; what is left cannot be sent.
                Err(_) => self.sent = self.size,
            }
        }
        if random.below(3) > 0 {
            moved |= self.read(1 + random.below(40_000) as usize);
        }
        if self.sent == self.size && self.greeting.is_empty() && !self.answer_left && !self.ended {
            self.ended = true;
            moved = true;
            match self.end {
                End::Half => drop(self.stream.as_ref().map(|stream| stream.shutdown(Shutdown::Write))),
                _ => self.stream = None,
            }
        }
        if self.ended && self.at_end {
            self.stream = None;
        }
        moved
    }

    fn read(&mut self, len: usize) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut buffer = vec![0; len];
        match stream.read(&mut buffer) {
            Ok(0) => !std::mem::replace(&mut self.at_end, true),
            Ok(count) => {
                let mut data = &buffer[..count];
                while self.answer_left {
                    let Some((first, rest)) = data.split_first() else { return true };
                    self.answer.push(*first);
                    self.answer_left = *first != b'\n';
                    data = rest;
                }
                assert_eq!(data, chunk(self.id, 0, self.got, data.len()), "stream {} towards host", self.id);
                self.got += data.len();
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            // The guest left data unread; everything it sent has been read by now.
            Err(_) => !std::mem::replace(&mut self.at_end, true),
        }
    }
}

struct World {
    guest: Guest,
    ends: HashMap<(u32, u32), GuestEnd>,
    random: SeededRandom,
}

impl World {
    fn header(end: &GuestEnd, op: Op, key: (u32, u32)) -> Header {
        let fwd_cnt = end.told;
        Header { buf_alloc: end.window, fwd_cnt, ..packet(op, key.0, key.1) }
    }

    fn guest_sends(&mut self) {
        let keys: Vec<_> = self.ends.keys().copied().collect();
        for key in keys {
            let Some(end) = self.ends.get_mut(&key) else { continue };
            if !end.open || end.closed || self.random.below(3) == 0 {
                continue;
            }
            if end.told != end.got as u32 && self.random.below(2) == 0 {
                end.told = end.got as u32;
                let header = Self::header(end, Op::CreditUpdate, key);
                self.guest.send(header, &[]);
            }
            let left = end.size - end.sent;
            let deaf = end.peer_flags & 1 != 0;
            let len = left.min(end.room as usize).min(1 + self.random.below(30_000) as usize);
            if len > 0 && !deaf && !end.ended {
                let header = Header { len: len as u32, ..Self::header(end, Op::ReadWrite, key) };
                if self.guest.send(header, &chunk(end.id, 0, end.sent, len)) {
                    end.sent += len;
                    end.room -= len as u32;
                }
            }
            if (end.sent == end.size || deaf) && !end.ended {
                let (op, flags) = match end.end {
                    End::Half => (Op::Shutdown, SHUTDOWN_SEND),
                    End::Full => (Op::Shutdown, SHUTDOWN_BOTH),
                    End::Reset => (Op::Reset, 0),
                };
                let header = Header { flags, ..Self::header(end, op, key) };
                end.ended = self.guest.send(header, &[]);
                end.closed |= end.ended && end.end == End::Reset;
            }
            // As Linux: the reset is the acknowledgement of a close from both sides.
            if end.ended && !end.closed && end.peer_flags & SHUTDOWN_SEND != 0 && end.end == End::Half {
                let header = Header { flags: SHUTDOWN_BOTH, ..Self::header(end, Op::Shutdown, key) };
                if self.guest.send(header, &[]) {
                    end.end = End::Full;
                }
            }
        }
        self.guest.kick();
    }

    fn guest_hears(&mut self, plans: &[Plan]) -> bool {
        let mut heard = false;
        while let Some((header, data)) = self.guest.take() {
            heard = true;
            let key = (header.src_port, header.dst_port);
            if header.op == Op::Request {
                let end =
                    guest_end(&plans[header.dst_port as usize], header.dst_port, key.0, &mut self.random);
                let answer = Self::header(&end, Op::Response, key);
                self.ends.insert(key, GuestEnd { open: true, ..end });
                // The ring has room: it was emptied before the packets were read.
                assert!(self.guest.send(answer, &[]));
                self.guest.kick();
            }
            let Some(end) = self.ends.get_mut(&key) else { continue };
            if end.closed {
                continue;
            }
            let outstanding = (end.sent as u32).wrapping_sub(header.fwd_cnt);
            end.room = header.buf_alloc.saturating_sub(outstanding);
            match header.op {
                Op::Response => end.open = true,
                Op::ReadWrite => {
                    assert_eq!(
                        data,
                        chunk(end.id, 1, end.got, data.len()),
                        "stream {} towards guest",
                        end.id
                    );
                    end.got += data.len();
                    assert!(end.got as u32 - end.told <= end.window, "more than the guest has room for");
                    if end.got as u32 - end.told == end.window {
                        end.told = end.got as u32;
                        let update = Self::header(end, Op::CreditUpdate, key);
                        assert!(self.guest.send(update, &[]));
                    }
                }
                Op::Shutdown => end.peer_flags |= header.flags,
                Op::Reset => end.closed = true,
                Op::CreditRequest => {
                    end.told = end.got as u32;
                    let update = Self::header(end, Op::CreditUpdate, key);
                    assert!(self.guest.send(update, &[]));
                }
                _ => {}
            }
        }
        heard
    }
}

fn guest_end(plan: &Plan, id: u32, host_port: u32, random: &mut SeededRandom) -> GuestEnd {
    GuestEnd {
        id,
        host_port,
        open: false,
        size: plan.guest_size,
        sent: 0,
        room: 0,
        end: plan.guest_end,
        ended: false,
        got: 0,
        window: 1024 + random.below(60_000) as u32,
        told: 0,
        peer_flags: 0,
        closed: false,
    }
}

fn host_end(plan: &Plan, id: u32, stream: UnixStream) -> HostEnd {
    stream.set_nonblocking(true).unwrap();
    let greeting = if plan.from_host { format!("CONNECT {id}\n").into_bytes() } else { Vec::new() };
    HostEnd {
        id,
        stream: Some(stream),
        greeting,
        answer_left: plan.from_host,
        answer: Vec::new(),
        size: plan.host_size,
        sent: 0,
        end: plan.host_end,
        ended: false,
        got: 0,
        at_end: false,
    }
}

fn run(seed: u64, streams: u32) {
    let folder = Folder::new("streams");
    let mut random = SeededRandom::new(seed);
    let plans: Vec<Plan> = (0..streams).map(|_| plan(&mut random)).collect();
    let listener = UnixListener::bind(uds_for(&folder, HOST_PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut world = World { guest: Guest::new(&folder), ends: HashMap::new(), random };
    let mut hosts: Vec<HostEnd> = Vec::new();
    let mut unnamed: Vec<(UnixStream, Vec<u8>)> = Vec::new();
    let mut next = 0;
    let mut idle_since = Instant::now();
    loop {
        // A few dozen new ones at a time.
        let soon = (next + 40).min(streams);
        while next < soon {
            let plan = &plans[next as usize];
            if plan.from_host {
                hosts.push(host_end(plan, next, UnixStream::connect(uds(&folder)).unwrap()));
            } else {
                let end = guest_end(plan, next, HOST_PORT, &mut world.random);
                let key = (HOST_PORT, next);
                if !world.guest.send(World::header(&end, Op::Request, key), &[]) {
                    break;
                }
                world.ends.insert(key, end);
            }
            next += 1;
        }
        world.guest_sends();
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            unnamed.push((stream, Vec::new()));
        }
        // The device connects in the order of requests, and a backlog keeps it.
        let guest_made: Vec<u32> = (0..next).filter(|&id| !plans[id as usize].from_host).collect();
        let taken = hosts.iter().filter(|host| !plans[host.id as usize].from_host).count();
        for (offset, (stream, _)) in unnamed.drain(..).enumerate() {
            let id = guest_made[taken + offset];
            hosts.push(host_end(&plans[id as usize], id, stream));
        }
        let mut moved = false;
        for host in &mut hosts {
            moved |= host.step(&mut world.random);
        }
        let buffers = world.random.below(65) as usize;
        world.guest.refill_to(buffers);
        moved |= world.guest.turn();
        moved |= world.guest_hears(&plans);
        assert!(world.guest.host.fault().is_none());
        let done = next == streams
            && hosts.len() as u32 == streams
            && hosts.iter().all(|host| host.stream.is_none())
            && world.ends.len() as u32 == streams
            && world.ends.values().all(|end| end.closed || end.ended && end.peer_flags == SHUTDOWN_BOTH);
        if done {
            break;
        }
        if moved {
            idle_since = Instant::now();
        }
        assert!(idle_since.elapsed() < Duration::from_secs(60), "seed {seed}: {}", stuck(&hosts, &world));
    }
    // What still is open at the guest is acknowledged, and nothing is left.
    let keys: Vec<_> = world.ends.iter().filter(|(_, end)| !end.closed).map(|(key, _)| *key).collect();
    for key in keys {
        while !world.guest.send(packet(Op::Reset, key.0, key.1), &[]) {
            world.guest.kick();
        }
    }
    world.guest.kick();
    world.guest.refill();
    while world.guest.turn() {}
    assert_eq!(world.guest.open_streams(), 0, "seed {seed}");
    for host in &hosts {
        let end = world.ends.values().find(|end| end.id == host.id).unwrap();
        let plan = &plans[host.id as usize];
        if plan.host_end == End::Half {
            assert_eq!(host.got, plan.guest_size, "seed {seed}: stream {} lost bytes of the guest", host.id);
        }
        if plan.guest_end == End::Half {
            assert_eq!(end.got, plan.host_size, "seed {seed}: stream {} lost bytes of the host", host.id);
        }
        if plan.from_host {
            assert_eq!(host.answer, format!("OK {}\n", end.host_port).into_bytes());
        }
    }
}

fn stuck(hosts: &[HostEnd], world: &World) -> String {
    let ends = world.ends.values().filter(|end| !end.closed).take(5).map(|end| {
        let host = hosts.iter().find(|host| host.id == end.id);
        let host = host.map(|host| (host.sent, host.size, host.got, host.end, host.ended, host.at_end));
        format!(
            "{}: open {} sent {}/{} room {} {:?} ended {} got {} flags {} host {host:?}",
            end.id, end.open, end.sent, end.size, end.room, end.end, end.ended, end.got, end.peer_flags
        )
    });
    let open = hosts.iter().filter(|host| host.stream.is_some()).count();
    let seen = (hosts.len(), open, world.ends.len());
    format!("(hosts, of them open, guest ends) {seen:?}; {}", ends.collect::<Vec<_>>().join("; "))
}

#[test]
fn a_thousand_streams_lose_nothing() {
    run(1, STREAMS);
}

#[test]
fn a_few_streams_lose_nothing_whatever_the_seed() {
    for seed in 2..40 {
        run(seed, 12);
    }
}
