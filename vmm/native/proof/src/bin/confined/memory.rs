//! What any thread does: allocating in each way, locking, speaking, ending.

use std::hint::black_box;
use std::sync::{Arc, Barrier};

use strato_jail::Role;
use strato_virtio::thread::spawn;

const THREADS: usize = 4;
const SMALL: usize = 1000;
const LARGE: usize = 4 << 20;
/// In a thread's place to allocate from, whose end they are when they are given back.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 16;

pub(crate) fn work(role: Role) {
    let together = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let together = Arc::clone(&together);
            spawn(Some(role), "memory", move || {
                together.wait();
                // Before anything large is given back: the allocator keeps more from then on.
                let shrinks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![number as u8; BLOCK]).collect();
                together.wait();
                drop(black_box(shrinks));
                together.wait();
                let small: Vec<Vec<u8>> = (0..8000).map(|_| vec![number as u8; SMALL]).collect();
                let mut large = black_box(vec![1u8; LARGE]);
                large.reserve_exact(LARGE * 4);
                together.wait();
                eprintln!("thread {number} has {} and {}", black_box(small).len(), black_box(large).len());
            })
            .unwrap()
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
