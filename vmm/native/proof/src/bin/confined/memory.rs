//! What any thread does: allocating in each way, locking, speaking, ending.

use std::hint::black_box;
use std::sync::{Arc, Barrier};

use strato_jail::Role;
use strato_virtio::thread::spawn;

const THREADS: usize = 4;
const SMALL: usize = 1000;
const LARGE: usize = 4 << 20;

pub(crate) fn work(role: Role) {
    // As strato-vmm has it: threads share two places to allocate from, the process's own among them.
    // SAFETY: it takes numbers, and may be called at any time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    let together = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let together = Arc::clone(&together);
            spawn(Some(role), "memory", move || {
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
