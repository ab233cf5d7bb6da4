//! The words that tables are written in.

use std::ffi::{c_int, c_long};

/// What one system call may be used for.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its number on this architecture.
    pub call: c_long,
    /// Its name, for people.
    pub name: &'static str,
    /// All of them must be met. Without any the call is allowed whatever its arguments.
    pub conditions: &'static [Condition],
    /// What happens then.
    pub verdict: Verdict,
    /// Why it is needed.
    pub why: &'static str,
}

/// What a rule says about the calls that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It is not made and fails with this errno: for what libraries try first and can do without.
    Refuse(c_int),
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// What is compared.
    pub compare: Compare,
}

/// A comparison with an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// The low 32 bits are this number: for what the kernel takes as an int.
    Equal(u32),
    /// All 64 bits are this number.
    Equal64(u64),
    /// The low 32 bits under a mask (first) are this number.
    Masked(u32, u32),
}

/// Argument `argument`, an int, is `value`.
pub const fn is(argument: u8, value: c_int) -> Condition {
    Condition { argument, compare: Compare::Equal(value as u32) }
}

/// Argument `argument` has none of these bits.
pub const fn without(argument: u8, bits: c_int) -> Condition {
    Condition { argument, compare: Compare::Masked(bits as u32, 0) }
}

/// Argument `argument` has no bits but these.
pub const fn within(argument: u8, bits: c_int) -> Condition {
    Condition { argument, compare: Compare::Masked(!(bits as u32), 0) }
}

/// Argument `argument` has all of these bits.
pub const fn with(argument: u8, bits: c_int) -> Condition {
    Condition { argument, compare: Compare::Masked(bits as u32, bits as u32) }
}

/// Argument `argument`, a long or pointer, is `value`.
pub const fn is_long(argument: u8, value: u64) -> Condition {
    Condition { argument, compare: Compare::Equal64(value) }
}

/// `permit!(SYS_name, "why")` or `permit!(SYS_name, [conditions], "why")`: a rule.
macro_rules! permit {
    ($name:ident, $why:literal) => {
        permit!($name, [], $why)
    };
    ($name:ident, [$($condition:expr),*], $why:expr) => {
        $crate::rules::Rule {
            call: libc::$name,
            name: stringify!($name),
            conditions: &[$($condition),*],
            verdict: $crate::rules::Verdict::Allow,
            why: $why,
        }
    };
}

/// `refuse!(SYS_name, errno, "why")`: a call that fails without harm.
macro_rules! refuse {
    ($name:ident, $errno:expr, $why:literal) => {
        $crate::rules::Rule {
            call: libc::$name,
            name: stringify!($name),
            conditions: &[],
            verdict: $crate::rules::Verdict::Refuse($errno),
            why: $why,
        }
    };
}

pub(crate) use {permit, refuse};

/// Several tables as one.
///
/// `N` is the sum of their lengths; another number does not compile.
#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler; beyond an end is an error there")]
pub(crate) const fn joined<const N: usize>(parts: &[&[Rule]]) -> [Rule; N] {
    let mut all = [NO_RULE; N];
    let (mut part, mut index, mut count) = (0, 0, 0);
    while part < parts.len() {
        if index < parts[part].len() {
            all[count] = parts[part][index];
            count += 1;
            index += 1;
        } else {
            part += 1;
            index = 0;
        }
    }
    assert!(count == N);
    all
}

/// What [`joined`] fills its result with at first.
const NO_RULE: Rule = Rule { call: -1, name: "", conditions: &[], verdict: Verdict::Allow, why: "" };
