//! Any change of a kernel's file ends in a boot that keeps its bounds, or in an error; never in a panic.

use strato_virtio::mock::SeededRandom;

use super::super::{BootEntry, Mode, load};
use super::files::*;
use crate::arch::EntryChoice;
use crate::arch::x86_64::memory_map::tests::board;

const ROUNDS: u64 = 3000;

/// Values that are near the edge of something.
const EDGES: [u64; 12] =
    [0, 1, 0xFFF, 0x1000, 0xA_0000, MIB, RAM_BYTES, 1 << 30, 1 << 32, u64::MAX, u64::MAX - 0xFFF, 1 << 63];

fn mutate(file: &mut Vec<u8>, interesting: usize, random: &mut SeededRandom) {
    for _ in 0..=random.below(3) {
        let at = random.below(interesting as u64) as usize;
        match random.below(5) {
            0 => file[at] = random.below(256) as u8,
            1 => file[at] ^= 1 << random.below(8),
            2 => file.truncate(at.max(1)),
            kind => {
                let edge = EDGES[random.below(EDGES.len() as u64) as usize];
                let value = edge.wrapping_add(random.below(3)).wrapping_sub(1).to_le_bytes();
                let width = 1 << (kind - 1);
                let end = (at + width).min(file.len());
                put(file, at, &value[..end - at]);
            }
        }
        if file.len() <= interesting {
            break;
        }
    }
}

/// What must hold whatever the file says.
fn check(ram: &strato_virtio::GuestRam, entry: BootEntry) {
    assert!((MIB..RAM_BYTES).contains(&entry.addr), "{entry:?}");
    let expected = if entry.mode == Mode::Long { 0x7000 } else { 0x6000 };
    assert_eq!(entry.info_addr, expected);
    assert_eq!(read(ram, 0xE_0000), *b"RSD PTR ");
    assert_eq!(read(ram, 0x2_0000), *CMDLINE.as_bytes().first_chunk::<18>().unwrap());
}

fn run(name: &str, whole: &[u8], interesting: usize, choices: &[EntryChoice]) {
    let mut booted = 0;
    // One mapping for all rounds: nothing here depends on what was loaded before.
    let ram = ram();
    for seed in 0..ROUNDS {
        let mut random = SeededRandom::new(seed);
        let mut kernel = whole.to_vec();
        mutate(&mut kernel, interesting, &mut random);
        let choice = choices[random.below(choices.len() as u64) as usize];
        match load(&ram, &board(), &boot(&kernel, choice)) {
            Ok(entry) => {
                booted += 1;
                check(&ram, entry);
            }
            Err(failure) => assert!(
                failure.to_string().starts_with("The kernel")
                    || failure.to_string().starts_with("Segment ")
                    || failure.to_string().starts_with("An ELF note "),
                "{name} {seed}: {failure}"
            ),
        }
    }
    // Neither all nor none: the changes hit what is looked at, and what is not.
    assert!((ROUNDS / 20..ROUNDS * 19 / 20).contains(&booted), "{name}: {booted} of {ROUNDS}");
}

#[test]
fn changed_elf_kernels_are_booted_within_bounds_or_refused() {
    let choices = [EntryChoice::Auto, EntryChoice::Linux64, EntryChoice::Pvh];
    run("vmlinux", &vmlinux(), 0x280, &choices);
    run("unikernel", &unikernel(), 0x220, &choices);
}

#[test]
fn changed_bzimages_are_booted_within_bounds_or_refused() {
    run("bzImage", &bzimage(), 0x290, &[EntryChoice::Auto, EntryChoice::Linux64]);
}
