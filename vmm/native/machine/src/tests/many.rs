//! As many vCPUs as a machine can be asked for.

use std::collections::BTreeSet;

use vm_memory::{Bytes, GuestAddress};

use super::guest::code;
use super::owned::{Owned, WORD, boot, wait};

const CPUS: u32 = 64;
/// Where the others start, as the kernel's message says: vector 0x10.
const START: GuestAddress = GuestAddress(0x10_000);

/// Starts all others again and again (INIT and start-up message, Intel SDM volume 3, 11.6.1) and waits for each of
/// them in every round; rounds are counted.
fn first() -> &'static [u8] {
    code!(
        "mov edi, 0xfee00000",
        "xor ecx, ecx",
        "2:",
        "mov dword ptr [edi + 0x300], 0xc4500",
        "mov dword ptr [edi + 0x300], 0xc4610",
        "add ecx, 63",
        "3:",
        "pause",
        "cmp [0x4000], ecx",
        "jne 3b",
        "inc dword ptr [0x300000]",
        "jmp 2b",
    )
}

/// Says that it has started, and waits for the next time.
fn others() -> &'static [u8] {
    code!(".code16", "xor ax, ax", "mov ds, ax", "lock inc dword ptr [0x4000]", "2:", "hlt", "jmp 2b")
}

fn begin(owned: &Owned) {
    owned.machine.load(&boot(first())).unwrap();
    owned.ram().write_slice(others(), START).unwrap();
    owned.machine.resume().unwrap();
}

/// All vCPUs have begun and ended another round.
fn goes_on(owned: &Owned) {
    let former = owned.word(WORD);
    wait(|| (owned.word(WORD) >= former + 2).then_some(()));
}

#[test]
fn sixty_four_vcpus_start_pause_go_on_and_start_again_after_a_reset() {
    let Some(owned) = Owned::built(CPUS) else { return };
    let threads: BTreeSet<_> = owned.machine.cpus().into_iter().collect();
    assert_eq!((threads.len(), threads.contains(&0)), (CPUS as usize, false));
    for _ in 0..2 {
        assert_eq!(owned.word(WORD), 0);
        begin(&owned);
        for _ in 0..3 {
            goes_on(&owned);
            owned.pause();
            let stopped = owned.word(WORD);
            for _ in 0..100 {
                assert_eq!(owned.word(WORD), stopped);
                std::thread::yield_now();
            }
            owned.machine.resume().unwrap();
        }
        goes_on(&owned);
        owned.pause();
        owned.machine.reset().unwrap();
    }
    assert!(owned.heard.try_recv().is_err());
    assert_eq!(owned.machine.cpus().into_iter().collect::<BTreeSet<_>>(), threads);
}
