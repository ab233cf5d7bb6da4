//! Random numbers.

use crate::rules::{Rule, permit};

pub(in crate::tables) const RULES: [Rule; 1] = [permit!(SYS_getrandom, "What the guest asks for")];
