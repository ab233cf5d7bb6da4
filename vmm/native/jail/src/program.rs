//! From a table of rules to a program for seccomp(2), at compile time.
//!
//! The program checks the architecture, then compares the number of the call with one rule after the other. A
//! rule without conditions costs two instructions, and the kernel (5.11 and later) does not even run the
//! program for such a call: it works out beforehand which numbers are allowed whatever their arguments are.
#![allow(clippy::indexing_slicing, reason = "evaluated by the compiler; beyond an end is an error there")]

use crate::rules::{Compare, Condition, Rule, Verdict};

/// One instruction: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

/// What happens to a call that no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// The process ends by SIGSYS.
    Kill,
    /// The kernel writes a line to its log, and the call is made.
    Log,
}

/// The instructions of a table: at most `N`, of which `len` count.
#[derive(Debug)]
pub struct Program<const N: usize> {
    instructions: [Instruction; N],
    len: usize,
}

// linux/bpf_common.h, linux/filter.h
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// linux/seccomp.h
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// Offsets in `struct seccomp_data` (linux/seccomp.h); both architectures are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const OWN_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN_ARCHITECTURE: u32 = 0xc000_00b7;

/// `__X32_SYSCALL_BIT` of asm/unistd.h: the same architecture's calls with other numbers.
const X32_CALLS: u32 = 0x4000_0000;

/// No filter may be longer (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

const NOTHING: Instruction = Instruction { code: 0, jump_true: 0, jump_false: 0, value: 0 };

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, value: offset, ..NOTHING }
}

const fn finish(value: u32) -> Instruction {
    Instruction { code: RETURN, value, ..NOTHING }
}

/// Continues with the next instruction if the loaded word is `value`, otherwise `skipped` further on.
const fn unless_equal(value: u32, skipped: usize) -> Instruction {
    assert!(skipped <= u8::MAX as usize);
    Instruction { code: JUMP_EQUAL, jump_true: 0, jump_false: skipped as u8, value }
}

/// How many instructions a condition takes.
const fn condition_len(condition: &Condition) -> usize {
    match condition.compare {
        Compare::Equal(_) => 2,
        Compare::Equal64(_) => 4,
        Compare::Masked(..) => 3,
    }
}

/// How many instructions a rule takes behind the comparison of its number.
const fn body_len(rule: &Rule) -> usize {
    if rule.conditions.is_empty() {
        return 1;
    }
    let mut len = 2; // the verdict, and loading the number again
    let mut index = 0;
    while index < rule.conditions.len() {
        len += condition_len(&rule.conditions[index]);
        index += 1;
    }
    len
}

/// How many instructions a table takes.
pub const fn program_len(rules: &[Rule]) -> usize {
    let mut len = PROLOGUE + 1;
    let mut index = 0;
    while index < rules.len() {
        len += 1 + body_len(&rules[index]);
        index += 1;
    }
    len
}

const PROLOGUE: usize = if cfg!(target_arch = "x86_64") { 6 } else { 4 };

impl<const N: usize> Program<N> {
    /// Compiles a table, but for the rule at index `left_out`.
    pub const fn new(rules: &[Rule], otherwise: Otherwise, left_out: Option<usize>) -> Self {
        let refused = match otherwise {
            Otherwise::Kill => RET_KILL_PROCESS,
            Otherwise::Log => RET_LOG,
        };
        let mut program = Self { instructions: [NOTHING; N], len: 0 };
        program.push(load(ARCHITECTURE));
        program.push(Instruction { code: JUMP_EQUAL, jump_true: 1, jump_false: 0, value: OWN_ARCHITECTURE });
        program.push(finish(refused));
        program.push(load(NUMBER));
        if cfg!(target_arch = "x86_64") {
            program.push(Instruction {
                code: JUMP_GREATER_EQUAL,
                jump_true: 0,
                jump_false: 1,
                value: X32_CALLS,
            });
            program.push(finish(refused));
        }
        let mut index = 0;
        while index < rules.len() {
            if !matches!(left_out, Some(left) if left == index) {
                program.push_rule(&rules[index]);
            }
            index += 1;
        }
        program.push(finish(refused));
        program
    }

    const fn push(&mut self, instruction: Instruction) {
        self.instructions[self.len] = instruction;
        self.len += 1;
    }

    const fn push_rule(&mut self, rule: &Rule) {
        let verdict = match rule.verdict {
            Verdict::Allow => RET_ALLOW,
            Verdict::Refuse(errno) => RET_ERRNO | (errno as u32 & 0xffff),
        };
        self.push(unless_equal(rule.call as u32, body_len(rule)));
        if rule.conditions.is_empty() {
            return self.push(finish(verdict));
        }
        let end = self.len + body_len(rule) - 1;
        let mut index = 0;
        while index < rule.conditions.len() {
            self.push_condition(&rule.conditions[index], end);
            index += 1;
        }
        self.push(finish(verdict));
        self.push(load(NUMBER));
    }

    /// A condition that is not met leads to `end`, where the number is loaded again for the next rule.
    const fn push_condition(&mut self, condition: &Condition, end: usize) {
        let low = ARGUMENTS + 8 * condition.argument as u32;
        self.push(load(low));
        match condition.compare {
            Compare::Equal(value) => self.push(unless_equal(value, end - self.len - 1)),
            Compare::Masked(mask, value) => {
                self.push(Instruction { code: AND, value: mask, ..NOTHING });
                self.push(unless_equal(value, end - self.len - 1));
            }
            Compare::Equal64(value) => {
                self.push(unless_equal(value as u32, end - self.len - 1));
                self.push(load(low + 4));
                self.push(unless_equal((value >> 32) as u32, end - self.len - 1));
            }
        }
    }

    /// The instructions that count.
    pub fn instructions(&self) -> &[Instruction] {
        self.instructions.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
