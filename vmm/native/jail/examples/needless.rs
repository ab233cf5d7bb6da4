//! Tells which rules of the first thread's table none of the recorded calls has met (tests/framework/recording.py).
//!
//! `needless FILE…`: each line is a call, its number and six arguments.

use std::process::ExitCode;

use strato_jail::Role;
use strato_jail::rules::{Compare, Condition, Rule};

struct Call {
    number: i64,
    arguments: Vec<u64>,
}

impl Call {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let arguments = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(Self { number, arguments })
    }

    fn meets(&self, rule: &Rule) -> bool {
        self.number == rule.call && rule.conditions.iter().all(|condition| self.fulfils(condition))
    }

    fn fulfils(&self, condition: &Condition) -> bool {
        let value = self.arguments.get(usize::from(condition.argument)).copied().unwrap_or_default();
        match condition.compare {
            Compare::Equal(wanted) => value as u32 == wanted,
            Compare::Equal64(wanted) => value == wanted,
            Compare::Masked(mask, wanted) => value as u32 & mask == wanted,
        }
    }
}

fn main() -> ExitCode {
    let mut calls = Vec::new();
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("Cannot read {path}: {error}");
                return ExitCode::FAILURE;
            }
        };
        calls.extend(text.lines().filter_map(Call::parse));
    }
    let needless = |rule: &&Rule| !calls.iter().any(|call| call.meets(rule));
    for rule in Role::Control.rules().iter().filter(needless) {
        println!("{} ({})", rule.name, rule.why);
    }
    ExitCode::SUCCESS
}
