//! The command line of strato-holder. Pure: words in, [`Options`] out.

use std::ffi::{CString, c_int};

use crate::{Failure, Result};

/// Which network namespace to hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Netns {
    /// The caller's.
    #[default]
    Inherited,
    /// An existing one.
    Path(CString),
    /// A new one with `lo` up.
    New,
}

/// What the caller asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The network namespace.
    pub netns: Netns,
    /// SIGKILL when the caller's thread dies.
    pub die_with_parent: bool,
    /// Cgroup directories to enter.
    pub cgroups: Vec<CString>,
    /// What `ps` shows.
    pub name: Option<CString>,
}

/// Parses the command line. The status descriptor is returned even when another option is wrong, so that the
/// caller hears about it.
pub fn parse(words: &[CString]) -> (Result<Options>, Option<c_int>) {
    let mut status_fd = None;
    let options = parse_options(words, &mut status_fd);
    (options, status_fd)
}

fn parse_options(words: &[CString], status_fd: &mut Option<c_int>) -> Result<Options> {
    let mut options = Options::default();
    let mut problem = None;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let name = word.to_string_lossy();
        let mut value =
            || rest.next().cloned().ok_or_else(|| Failure::refused(format!("Option {name} needs a value")));
        match word.to_bytes() {
            b"--status-fd" => *status_fd = Some(descriptor(&value()?)?),
            b"--netns" if options.netns == Netns::Inherited => options.netns = Netns::Path(value()?),
            b"--new-netns" if options.netns == Netns::Inherited => options.netns = Netns::New,
            b"--netns" | b"--new-netns" => {
                problem =
                    Some("Options --netns and --new-netns exclude each other and may be given once".into());
            }
            b"--die-with-parent" => options.die_with_parent = true,
            b"--cgroup" => options.cgroups.push(value()?),
            b"--name" => options.name = Some(value()?),
            _ => {
                problem = Some(format!(
                    "Option {name:?} is unknown; usage: strato-holder [--netns PATH | --new-netns] \
                     [--status-fd N] [--die-with-parent] [--cgroup DIR]... [--name TITLE]"
                ));
            }
        }
    }
    match problem {
        Some(text) => Err(Failure::refused(text)),
        None => Ok(options),
    }
}

fn descriptor(word: &CString) -> Result<c_int> {
    match word.to_str().unwrap_or_default().parse::<c_int>() {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(Failure::refused(format!("Option --status-fd needs a descriptor number, not {word:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<CString> {
        line.split_whitespace().map(|word| CString::new(word).unwrap()).collect()
    }

    #[test]
    fn parse_takes_every_option() {
        let (options, fd) =
            parse(&words("--netns /n --status-fd 4 --die-with-parent --cgroup /a --cgroup /b --name t"));
        let wanted = Options {
            netns: Netns::Path(c"/n".into()),
            die_with_parent: true,
            cgroups: words("/a /b"),
            name: Some(c"t".into()),
        };
        assert_eq!(options, Ok(wanted));
        assert_eq!(fd, Some(4));
    }

    #[test]
    fn parse_refuses_two_namespaces_and_still_finds_the_status_fd() {
        let (options, fd) = parse(&words("--netns /n --new-netns --status-fd 4"));
        assert!(options.unwrap_err().to_string().contains("exclude"));
        assert_eq!(fd, Some(4));
    }

    #[test]
    fn parse_refuses_unknown_options_and_missing_values() {
        assert!(parse(&words("--frob")).0.unwrap_err().to_string().contains("--frob"));
        assert!(parse(&words("--netns")).0.unwrap_err().to_string().contains("needs a value"));
        assert!(parse(&words("--status-fd x")).0.unwrap_err().to_string().contains("descriptor"));
    }
}
