//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

const USAGE: &str = "usage: strato-vhost-device rng --socket PATH [--once]\n\
       strato-vhost-device block --socket PATH --file PATH [--readonly] [--serial TEXT] [--ignore-flush] [--once]\n\
       strato-vhost-device vsock --socket PATH --uds PATH --guest-cid N [--max-connections N] [--once]";

const DEFAULT_MAX_CONNECTIONS: usize = 4096;

/// Which device is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Rng,
    Block { file: PathBuf, readonly: bool, serial: String, ignore_flush: bool },
    Vsock { path: PathBuf, guest_cid: u64, max_connections: usize },
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) device: Device,
    pub(crate) socket: PathBuf,
    /// End when the first front end has gone.
    pub(crate) once: bool,
}

#[derive(Default)]
struct Options {
    socket: Option<PathBuf>,
    path: Option<PathBuf>,
    guest_cid: Option<u64>,
    max_connections: Option<usize>,
    file: Option<PathBuf>,
    serial: Option<String>,
    readonly: bool,
    ignore_flush: bool,
    once: bool,
}

fn number<T: std::str::FromStr>(option: &str, word: &OsString) -> Result<T, String> {
    let parsed = word.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{option} needs a number, not {}", word.to_string_lossy()))
}

impl Arguments {
    /// # Errors
    /// One line that says what is wrong.
    pub(crate) fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let kind = words.next().ok_or(USAGE)?;
        let mut options = Options::default();
        while let Some(word) = words.next() {
            let name = word.to_str().unwrap_or_default();
            let flag = match name {
                "--once" => Some(&mut options.once),
                "--readonly" => Some(&mut options.readonly),
                "--ignore-flush" => Some(&mut options.ignore_flush),
                _ => None,
            };
            if let Some(flag) = flag {
                *flag = true;
                continue;
            }
            let mut value = || words.next().ok_or_else(|| format!("{name} needs a value; {USAGE}"));
            match name {
                "--socket" => options.socket = Some(value()?.into()),
                "--uds" => options.path = Some(value()?.into()),
                "--file" => options.file = Some(value()?.into()),
                "--serial" => options.serial = Some(value()?.to_string_lossy().into_owned()),
                "--guest-cid" => options.guest_cid = Some(number(name, &value()?)?),
                "--max-connections" => options.max_connections = Some(number(name, &value()?)?),
                _ => return Err(format!("Unknown argument {}; {USAGE}", word.to_string_lossy())),
            }
        }
        let missing = |name| move || format!("{name} is missing; {USAGE}");
        let device = match kind.to_str() {
            Some("rng") if options.path.is_none() && options.guest_cid.is_none() => Device::Rng,
            Some("block") => Device::Block {
                file: options.file.ok_or_else(missing("--file"))?,
                readonly: options.readonly,
                serial: options.serial.unwrap_or_default(),
                ignore_flush: options.ignore_flush,
            },
            Some("vsock") => Device::Vsock {
                path: options.path.ok_or_else(missing("--uds"))?,
                guest_cid: options.guest_cid.ok_or_else(missing("--guest-cid"))?,
                max_connections: options.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
            },
            _ => return Err(format!("No such device or options: {}; {USAGE}", kind.to_string_lossy())),
        };
        Ok(Self { device, socket: options.socket.ok_or_else(missing("--socket"))?, once: options.once })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn complete_lines_are_understood() {
        let rng = Arguments { device: Device::Rng, socket: "/s".into(), once: true };
        assert_eq!(parse("rng --socket /s --once"), Ok(rng));
        let device = Device::Vsock { path: "/u".into(), guest_cid: 3, max_connections: 9 };
        let vsock = Arguments { device, socket: "/s".into(), once: false };
        assert_eq!(parse("vsock --uds /u --guest-cid 3 --socket /s --max-connections 9"), Ok(vsock));
    }

    #[test]
    fn incomplete_or_wrong_lines_are_refused_by_name() {
        for (line, name) in [
            ("", "usage"),
            ("rng", "--socket is missing"),
            ("rng --socket", "--socket needs a value"),
            ("rng --socket /s --uds /u", "No such device or options"),
            ("tape --socket /s", "tape"),
            ("vsock --socket /s --uds /u", "--guest-cid is missing"),
            ("vsock --socket /s --uds /u --guest-cid three", "not three"),
            ("block --socket /s", "--file is missing"),
            ("vsock --frob", "--frob"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(name), "{line}: {message}");
        }
    }
}
