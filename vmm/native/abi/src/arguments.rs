//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use strato_devices::fs::passthrough::CachePolicy;

const USAGE: &str = "usage: strato-vhost-device rng --socket PATH [--once]\n\
       strato-vhost-device block --socket PATH --file PATH [--readonly] [--serial TEXT] [--ignore-flush] [--once]\n\
       strato-vhost-device vsock --socket PATH --uds PATH --guest-cid N [--max-connections N] [--once]\n\
       strato-vhost-device fs --socket PATH --directory PATH [--cache auto|always|none] [--readonly] [--tag TEXT] \
       [--threads N] [--writeback] [--once]";

const DEFAULT_MAX_CONNECTIONS: usize = 4096;

/// Which device is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Rng,
    Block { file: PathBuf, readonly: bool, serial: String, ignore_flush: bool },
    Vsock { path: PathBuf, guest_cid: u64, max_connections: usize },
    Fs(Share),
}

/// A folder to be shared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) directory: PathBuf,
    pub(crate) cache: CachePolicy,
    pub(crate) readonly: bool,
    pub(crate) tag: String,
    /// None: as many as the device thinks best.
    pub(crate) threads: Option<usize>,
    pub(crate) writeback: bool,
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
    directory: Option<PathBuf>,
    cache: CachePolicy,
    tag: Option<String>,
    threads: Option<usize>,
    writeback: bool,
}

fn cache_policy(word: &OsString) -> Result<CachePolicy, String> {
    match word.to_str() {
        Some("auto") => Ok(CachePolicy::Auto),
        Some("always") => Ok(CachePolicy::Always),
        Some("none") => Ok(CachePolicy::None),
        _ => Err(format!("--cache needs auto, always or none, not {}", word.to_string_lossy())),
    }
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
                "--writeback" => Some(&mut options.writeback),
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
                "--directory" => options.directory = Some(value()?.into()),
                "--cache" => options.cache = cache_policy(&value()?)?,
                "--tag" => options.tag = Some(value()?.to_string_lossy().into_owned()),
                "--threads" => options.threads = Some(number(name, &value()?)?),
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
            Some("fs") => Device::Fs(Share {
                directory: options.directory.ok_or_else(missing("--directory"))?,
                cache: options.cache,
                readonly: options.readonly,
                // Front ends such as QEMU have a tag of their own and never ask for this one.
                tag: options.tag.unwrap_or_else(|| "share".into()),
                threads: options.threads,
                writeback: options.writeback,
            }),
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
        let share = Share {
            directory: "/d".into(),
            cache: CachePolicy::None,
            readonly: true,
            tag: "root".into(),
            threads: Some(3),
            writeback: true,
        };
        let fs = Arguments { device: Device::Fs(share), socket: "/s".into(), once: false };
        let line = "fs --socket /s --directory /d --cache none --readonly --tag root --threads 3 --writeback";
        assert_eq!(parse(line), Ok(fs));
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
            ("fs --socket /s", "--directory is missing"),
            ("fs --socket /s --directory /d --cache never", "not never"),
            ("vsock --frob", "--frob"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(name), "{line}: {message}");
        }
    }
}
