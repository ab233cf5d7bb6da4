//! Programs do what their tables say, by running them and by asking the kernel.

use super::*;
use crate::rules::{is, is_long, permit, refuse, with, within, without};

/// `struct seccomp_data`
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Call {
    fn of(number: i64, arguments: &[u64]) -> Self {
        let mut all = [0; 6];
        for (place, argument) in all.iter_mut().zip(arguments) {
            *place = *argument;
        }
        Self { number: number as u32, architecture: OWN_ARCHITECTURE, arguments: all }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            NUMBER => self.number,
            ARCHITECTURE => self.architecture,
            _ => {
                let place = offset - ARGUMENTS;
                (self.arguments[place as usize / 8] >> (8 * (place % 8))) as u32
            }
        }
    }
}

/// Runs a program as the kernel does (kernel/seccomp.c, net/core/filter.c).
fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let Instruction { code, jump_true, jump_false, value } = program[at];
        at += 1;
        let jump = match code {
            LOAD => {
                accumulator = call.word(value);
                0
            }
            AND => {
                accumulator &= value;
                0
            }
            JUMP_EQUAL if accumulator == value => jump_true,
            JUMP_GREATER_EQUAL if accumulator >= value => jump_true,
            JUMP_EQUAL | JUMP_GREATER_EQUAL => jump_false,
            RETURN => return value,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(jump);
    }
}

/// What the table itself says.
fn expected(rules: &[Rule], call: &Call) -> u32 {
    let met = |condition: &Condition| {
        let argument = call.arguments[usize::from(condition.argument)];
        match condition.compare {
            Compare::Equal(value) => argument as u32 == value,
            Compare::Equal64(value) => argument == value,
            Compare::Masked(mask, value) => argument as u32 & mask == value,
        }
    };
    let rule = rules.iter().find(|rule| rule.call as u32 == call.number && rule.conditions.iter().all(met));
    match rule.map(|rule| rule.verdict) {
        Some(Verdict::Allow) => RET_ALLOW,
        Some(Verdict::Refuse(errno)) => RET_ERRNO | errno as u32,
        None => RET_KILL_PROCESS,
    }
}

const TABLE: [Rule; 8] = [
    permit!(SYS_read, "plain"),
    permit!(SYS_ioctl, [is(1, 5)], "an int"),
    permit!(SYS_ioctl, [is(1, 6), is(2, -1)], "two ints"),
    refuse!(SYS_clone3, libc::ENOSYS, "refused"),
    permit!(SYS_mmap, [without(2, 4), with(3, 2)], "bits"),
    permit!(SYS_madvise, [within(2, 5)], "a mask"),
    permit!(SYS_mremap, [is_long(0, 0x1_0000_0002)], "a long"),
    permit!(SYS_exit, "the last"),
];

#[test]
fn program_does_what_its_table_says() {
    let program = Program::<{ program_len(&TABLE) }>::new(&TABLE, Otherwise::Kill, None);
    assert_eq!(program.instructions().len(), program_len(&TABLE));
    let values =
        [0, 1, 2, 4, 5, 6, 7, u64::from(u32::MAX), u64::MAX, 0x1_0000_0000, 0x1_0000_0002, 0x1_0000_0005];
    let mut allowed = 0;
    for rule in &TABLE {
        for number in [rule.call, rule.call + 1, rule.call | 0x4000_0000] {
            for (a, b) in values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))) {
                for arguments in [[a, b, b, b, b, b], [b, a, b, a, b, b], [b, b, a, b, b, b]] {
                    let call = Call::of(number, &arguments);
                    let verdict = run(program.instructions(), &call);
                    assert_eq!(verdict, expected(&TABLE, &call), "{} {arguments:x?}", rule.name);
                    allowed += u32::from(verdict == RET_ALLOW);
                }
            }
        }
    }
    assert!(allowed > 1000);
}

#[test]
fn calls_of_another_architecture_are_not_taken_for_ours() {
    let program = Program::<64>::new(&TABLE, Otherwise::Kill, None);
    let foreign = Call { architecture: 0x4000_0003, ..Call::of(libc::SYS_read, &[]) };
    assert_eq!(run(program.instructions(), &foreign), RET_KILL_PROCESS);
    let own = Call::of(libc::SYS_read, &[]);
    assert_eq!(run(program.instructions(), &own), RET_ALLOW);
}

#[test]
fn rule_that_is_left_out_is_the_only_one_missing() {
    let program = Program::<64>::new(&TABLE, Otherwise::Log, Some(0));
    assert_eq!(run(program.instructions(), &Call::of(libc::SYS_read, &[])), RET_LOG);
    assert_eq!(run(program.instructions(), &Call::of(libc::SYS_ioctl, &[0, 5])), RET_ALLOW);
    assert_eq!(run(program.instructions(), &Call::of(libc::SYS_exit, &[])), RET_ALLOW);
}
