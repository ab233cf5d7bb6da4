//! Saved state that is not what was saved: cut, lengthened, with changed bytes.

use crate::choices::Choices;
use crate::machine::Machine;
use crate::side::Side;

/// Gives the device a spoilt copy of `record`. It takes it or refuses it; the rings of what it takes are
/// started as a shell does.
pub fn restore_spoilt(machine: &mut Machine, record: &[u8], choices: &mut Choices<'_>) {
    let spoilt = spoil(record, choices);
    let taken = machine.host.restore(&spoilt).is_ok();
    if let Side::Bare(host) = &machine.host {
        assert!(taken || (0..machine.queue_count()).all(|queue| !host.ring_running(queue)));
    } else if !taken {
        assert_eq!(machine.host.driver().status(), 0);
    }
}

fn spoil(record: &[u8], choices: &mut Choices<'_>) -> Vec<u8> {
    let mut spoilt = record.to_vec();
    for _ in 0..choices.below(4) {
        match choices.below(6) {
            0 => spoilt.truncate(choices.below(spoilt.len() as u64 + 1) as usize),
            1 => spoilt.extend_from_slice(&choices.number().to_le_bytes()),
            2 if !spoilt.is_empty() => {
                let at = choices.below(spoilt.len() as u64) as usize;
                spoilt[at] = choices.number() as u8;
            }
            3 if spoilt.len() >= 4 => {
                // Lengths and counts are mostly four bytes.
                let at = choices.below(spoilt.len() as u64 - 3) as usize;
                let value = choices.one_of(&[0, 1, 0x7fff_ffff, u32::MAX, 1 << 20]);
                spoilt[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            4 if !spoilt.is_empty() => {
                let at = choices.below(spoilt.len() as u64) as usize;
                spoilt[at] ^= 1 << choices.below(8);
            }
            _ => {}
        }
    }
    spoilt
}
