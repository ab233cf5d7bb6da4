//! Random messages, repeatable by their seed: half sense, half nonsense.

use std::sync::Arc;

use strato_virtio::mock::SeededRandom;

use super::super::backend::ROOT_NODE as ROOT;
use super::super::window::{ReservedWindow, page_size};
use super::guest::{ANSWER, Guest, HIPRIO, REQUEST, REQUESTS, Setup};

const SEEDS: u64 = 60;
const MESSAGES: u64 = 300;
const NAMES: [&[u8]; 8] = [b"a\0", b"dir\0", b"..\0", b"x/y\0", b"\0", b"user.k\0", b"link\0", b"open"];

/// Fields that may mean something, in random order.
fn body(random: &mut SeededRandom, known: &[u64]) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..random.below(12) {
        match random.below(7) {
            0 => body.extend(known[random.below(known.len() as u64) as usize].to_le_bytes()),
            1 => body.extend(random.below(10_000).to_le_bytes()),
            2 => body.extend((random.below(1 << 12) as u32).to_le_bytes()),
            3 => body.extend(NAMES[random.below(8) as usize]),
            4 => body.extend(random.next_u64().to_le_bytes()),
            5 => body.extend((page_size() * random.below(18)).to_le_bytes()),
            _ => body.extend([0; 8]),
        }
    }
    body
}

#[test]
fn random_messages_leave_the_device_alive() {
    for seed in 0..SEEDS {
        let mut random = SeededRandom::new(seed);
        let mut setup = Setup::default();
        if seed % 3 == 0 {
            setup.config.window = Some(Arc::new(ReservedWindow::new(16 * page_size()).unwrap()));
        }
        let mut guest = Guest::with(setup);
        let mut known = vec![ROOT];
        for message in 0..MESSAGES {
            let mut opcode = random.below(55) as u32;
            if [26, 38].contains(&opcode) && random.below(20) > 0 {
                opcode = 1;
            }
            let node = known[random.below(known.len() as u64) as usize];
            let body = body(&mut random, &known);
            let mut request = guest.header(opcode, node, body.len());
            request.extend(body);
            if random.below(8) == 0 {
                let at = random.below(request.len() as u64) as usize;
                request[at] = random.next_u64() as u8;
                // The test tells answers apart by this.
                request[8..16].fill(0);
            }
            if random.below(16) == 0 {
                request.truncate(random.below(request.len() as u64) as usize + 1);
            }
            guest.queues[0].write(REQUEST, &request);
            let len = request.len() as u32;
            let room = [0, 16, 24, 144, 4096, 1 << 20][random.below(6) as usize];
            let cut = random.below(u64::from(len)) as u32;
            let mut buffers = vec![(REQUEST, cut, false), (REQUEST + u64::from(cut), len - cut, false)];
            if room > 0 {
                buffers.push((ANSWER, room, true));
            }
            let queue = if random.below(10) == 0 { HIPRIO } else { REQUESTS };
            let used = guest.offer(queue, &buffers);
            assert!(used <= room, "seed {seed}, message {message}");
            assert!(guest.host.fault().is_none(), "seed {seed}, message {message}");
            if used >= 24 {
                let first = guest.queues[0].read(ANSWER + 16, 8);
                known.push(u64::from_le_bytes(first.try_into().unwrap()));
                known.truncate(32);
            }
        }
        // It still does what it should.
        guest.mount();
        assert!(guest.ask(17, ROOT, super::guest::Body::new()).is_ok(), "seed {seed}");
    }
}

#[test]
fn random_bytes_leave_the_device_alive() {
    let mut random = SeededRandom::new(1);
    let mut guest = Guest::new();
    for _ in 0..20_000 {
        let mut request = vec![0; random.below(200) as usize + 1];
        random.fill(&mut request);
        guest.queues[0].write(REQUEST, &request);
        guest.offer(REQUESTS, &[(REQUEST, request.len() as u32, false), (ANSWER, 300, true)]);
    }
    assert!(guest.host.fault().is_none());
}
