//! What a driver can say in its rings that is not true, one lie at a time.

use strato_virtio::mock::{Descriptor, INDIRECT, MockQueue, NEXT, WRITE};

use crate::machine::{RAM, READABLE, RING_SIZE, TABLES, WRITABLE};

/// What the specification asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The ring protocol is broken: a device that looks at the chain asks for a reset.
    Reset,
    /// The chain is well-formed, if useless: the device answers it or drops it, and may find fault with it.
    Any,
}

/// One lie.
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    /// What is wrong.
    pub name: &'static str,
    /// What it is answered with.
    pub answer: Answer,
    /// Puts it into the ring.
    pub tell: fn(&mut MockQueue),
}

const fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { addr, len, flags, next }
}

const READ: Descriptor = descriptor(READABLE, 64, 0, 0);
const END: u64 = RAM as u64;

/// Offers descriptors 0, 1, … as they are, with head 0.
fn chain(queue: &mut MockQueue, descriptors: &[Descriptor]) {
    for (index, descriptor) in descriptors.iter().enumerate() {
        queue.write_descriptor(index as u16, *descriptor);
    }
    queue.publish(0);
}

/// Offers one descriptor that points to a table of these.
fn table(queue: &mut MockQueue, descriptors: &[Descriptor]) {
    for (index, descriptor) in descriptors.iter().enumerate() {
        queue.write_descriptor_at(TABLES, index as u16, *descriptor);
    }
    chain(queue, &[descriptor(TABLES, 16 * descriptors.len() as u32, INDIRECT, 0)]);
}

/// `count` descriptors that each go on to the next, as a table.
fn long_table(queue: &mut MockQueue, count: u16, len: u32, flags: u16) {
    let each = |index: u16| {
        let next = if index + 1 < count { NEXT } else { 0 };
        descriptor(if flags & WRITE == 0 { READABLE } else { WRITABLE }, len, flags | next, index + 1)
    };
    table(queue, &(0..count).map(each).collect::<Vec<_>>());
}

macro_rules! lies {
    ($($name:literal, $answer:ident, $tell:expr;)*) => {
        /// All of them.
        pub const LIES: &[Lie] = &[$(Lie { name: $name, answer: Answer::$answer, tell: $tell },)*];
    };
}

lies! {
    "descriptor follows itself", Reset, |q| chain(q, &[descriptor(READABLE, 8, NEXT, 0)]);
    "two descriptors follow each other", Reset,
        |q| chain(q, &[descriptor(READABLE, 8, NEXT, 1), descriptor(READABLE, 8, NEXT, 0)]);
    "writable loop", Reset, |q| chain(q, &[descriptor(WRITABLE, 8, NEXT | WRITE, 0)]);
    "empty loop", Reset, |q| chain(q, &[descriptor(READABLE, 0, NEXT, 0)]);
    "next outside the table", Reset, |q| chain(q, &[descriptor(READABLE, 8, NEXT, RING_SIZE)]);
    "next far outside the table", Reset, |q| chain(q, &[descriptor(READABLE, 8, NEXT, u16::MAX)]);
    "head outside the table", Reset, |q| q.publish(RING_SIZE);
    "head far outside the table", Reset, |q| q.publish(u16::MAX);
    "index jumps past the ring", Reset, |q| q.set_avail_idx(RING_SIZE + 1);
    "index jumps half around", Reset, |q| q.set_avail_idx(0x8000);
    "index goes back", Reset, |q| q.set_avail_idx(u16::MAX);
    "buffer after the end of memory", Reset, |q| chain(q, &[descriptor(END, 8, 0, 0)]);
    "buffer across the end of memory", Reset, |q| chain(q, &[descriptor(END - 4, 8, 0, 0)]);
    "writable buffer after the end of memory", Reset, |q| chain(q, &[descriptor(END, 8, WRITE, 0)]);
    "writable buffer across the end of memory", Reset, |q| chain(q, &[descriptor(END - 4, 8, WRITE, 0)]);
    "buffer around the end of the address space", Reset, |q| chain(q, &[descriptor(u64::MAX - 3, 8, 0, 0)]);
    "buffer of 4 GiB", Reset, |q| chain(q, &[descriptor(READABLE, u32::MAX, 0, 0)]);
    "writable buffer of 4 GiB", Reset, |q| chain(q, &[descriptor(WRITABLE, u32::MAX, WRITE, 0)]);
    "good head, bad tail", Reset,
        |q| chain(q, &[descriptor(READABLE, 64, NEXT, 1), descriptor(END, 8, WRITE, 0)]);
    "chain of more than 4 GiB", Reset, |q| {
        // Every one of them lies in memory.
        let each = |index: u16| descriptor(0, END as u32, NEXT, index + 1);
        let mut all: Vec<_> = (0..1024).map(each).collect();
        all.push(READ);
        table(q, &all);
    };
    "readable after writable", Reset,
        |q| chain(q, &[descriptor(WRITABLE, 64, WRITE | NEXT, 1), READ]);
    "empty readable after writable", Reset,
        |q| chain(q, &[descriptor(WRITABLE, 64, WRITE | NEXT, 1), descriptor(READABLE, 0, 0, 0)]);
    "more descriptors than any driver has", Reset, |q| long_table(q, 1025, 1, 0);
    "more writable descriptors than any driver has", Reset, |q| long_table(q, 1025, 1, WRITE);
    "table in a table", Reset, |q| table(q, &[descriptor(TABLES + 256, 16, INDIRECT, 0)]);
    "table after the end of memory", Reset, |q| chain(q, &[descriptor(END, 16, INDIRECT, 0)]);
    "table across the end of memory", Reset, |q| {
        q.write_descriptor_at(END - 16, 0, descriptor(READABLE, 8, NEXT, 1));
        chain(q, &[descriptor(END - 16, 32, INDIRECT, 0)]);
    };
    "table around the end of the address space", Reset,
        |q| chain(q, &[descriptor(u64::MAX - 15, 32, INDIRECT, 0)]);
    "table of half a descriptor", Reset, |q| chain(q, &[descriptor(TABLES, 24, INDIRECT, 0)]);
    "table without descriptors", Reset, |q| chain(q, &[descriptor(TABLES, 0, INDIRECT, 0)]);
    "table of 4 GiB", Reset, |q| chain(q, &[descriptor(TABLES, u32::MAX - 15, INDIRECT, 0)]);
    "loop in a table", Reset, |q| table(q, &[descriptor(READABLE, 8, NEXT, 0)]);
    "table that goes on past its end", Reset, |q| table(q, &[descriptor(READABLE, 8, NEXT, 1)]);
    "nothing to read or write", Any, |q| chain(q, &[descriptor(READABLE, 0, 0, 0)]);
    "nothing to write", Any, |q| chain(q, &[descriptor(WRITABLE, 0, WRITE, 0)]);
    "empty buffer after the end of memory", Any, |q| chain(q, &[descriptor(END + 64, 0, 0, 0)]);
    "read-only where the device writes", Any, |q| chain(q, &[READ]);
    "write-only where the device reads", Any, |q| chain(q, &[descriptor(WRITABLE, 64, WRITE, 0)]);
    "one byte to read", Any, |q| chain(q, &[descriptor(READABLE, 1, 0, 0)]);
    "one byte to write", Any, |q| chain(q, &[descriptor(WRITABLE, 1, WRITE, 0)]);
    "one byte each", Any,
        |q| chain(q, &[descriptor(READABLE, 1, NEXT, 1), descriptor(WRITABLE, 1, WRITE, 0)]);
    "read and write the same bytes", Any,
        |q| chain(q, &[descriptor(WRITABLE, 64, NEXT, 1), descriptor(WRITABLE, 64, WRITE, 0)]);
    "a header of single bytes", Any, |q| {
        let mut all: Vec<_> = (0..64).map(|n| descriptor(READABLE + n, 1, NEXT, n as u16 + 1)).collect();
        all.push(descriptor(WRITABLE, 4096, WRITE, 0));
        table(q, &all);
    };
    "as many descriptors as allowed", Any, |q| long_table(q, 1024, 64, 0);
    "as many writable descriptors as allowed", Any, |q| long_table(q, 1024, 64, WRITE);
    "a megabyte to read", Any, |q| chain(q, &[descriptor(READABLE, 1 << 19, 0, 0)]);
    "a megabyte to write", Any, |q| chain(q, &[descriptor(WRITABLE, 1 << 20, WRITE, 0)]);
    "a whole memory to read", Any, |q| chain(q, &[descriptor(0, END as u32, 0, 0)]);
    "the same chain twice", Any, |q| {
        chain(q, &[READ]);
        q.publish(0);
    };
    "the same chain as often as the ring is long", Any, |q| {
        q.write_descriptor(0, descriptor(WRITABLE, 64, WRITE, 0));
        (0..RING_SIZE).for_each(|_| q.publish(0));
    };
    "unknown flags", Any, |q| chain(q, &[descriptor(READABLE, 64, 0xfff8, 0)]);
}
