//! The guest's console. Its bytes are read and written by the calls that every device has.

use crate::rules::{Rule, permit};

pub(in crate::tables) const RULES: [Rule; 1] = [permit!(SYS_sendto, "The terminal's size has changed")];
