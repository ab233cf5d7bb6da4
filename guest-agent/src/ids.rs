//! Names that arrive from the host and become path components, cgroup names and stream ids.

use crate::errors::{AgentError, Result};

/// Longest id: a file name (255 bytes) with room for suffixes.
const MAX_ID_LENGTH: usize = 200;

/// Checks a container or exec id: letters, digits, `_`, `.`, `-`, beginning with a letter or digit.
pub fn check(what: &str, id: &str) -> Result<()> {
    let starts_well = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let all_well = id
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if starts_well && all_well && id.len() <= MAX_ID_LENGTH {
        return Ok(());
    }
    Err(AgentError::invalid(format!(
        "{what} {id:?} is not an id (letters, digits, '_', '.', '-', at most {MAX_ID_LENGTH})"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_accepts_what_containerd_makes() {
        for id in ["a", "0123abc", "my_box.1-x", &"f".repeat(64)] {
            assert!(check("Container id", id).is_ok(), "{id}");
        }
    }

    #[test]
    fn check_refuses_paths_and_oddities() {
        for id in [
            "",
            ".",
            "..",
            "-x",
            "a/b",
            "a b",
            "a\0b",
            "é",
            &"f".repeat(201),
        ] {
            assert!(check("Container id", id).is_err(), "{id}");
        }
    }
}
