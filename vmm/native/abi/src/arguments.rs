//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use strato_devices::block::{CacheMode, EngineChoice};
use strato_devices::fs::passthrough::CachePolicy;
use strato_devices::{BucketConfig, Limits};

const USAGE: &str = "usage: strato-vhost-device rng --socket PATH [--once]\n\
       strato-vhost-device block --socket PATH --file PATH [--readonly] [--serial TEXT] [--cache none|writeback|direct] \
       [--queues N] [--bandwidth BYTES[:BURST]] [--operations N[:BURST]] [--engine auto|uring|pool] [--once]\n\
       strato-vhost-device net --socket PATH (--tap NAME [--queues N] | --tap-fd N ...) --mac ADDRESS [--mtu N] \
       [--bandwidth BYTES[:BURST]] [--operations N[:BURST]] [--once]\n\
       strato-vhost-device vsock --socket PATH --uds PATH --guest-cid N [--max-connections N] [--once]\n\
       strato-vhost-device fs --socket PATH --directory PATH [--cache auto|always|none] [--readonly] [--tag TEXT] \
       [--threads N] [--writeback] [--remote-locks] [--once]";

const DEFAULT_MAX_CONNECTIONS: usize = 4096;

/// Which device is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Rng,
    Block(Block),
    /// The limits hold for each direction.
    Net {
        tap: TapSource,
        mac: [u8; 6],
        mtu: Option<u16>,
        limits: Limits,
    },
    Vsock {
        path: PathBuf,
        guest_cid: u64,
        max_connections: usize,
    },
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
    pub(crate) remote_locks: bool,
}

/// What is asked of a block device.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) file: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) serial: String,
    pub(crate) cache: CacheMode,
    pub(crate) queues: u16,
    pub(crate) limits: Limits,
    pub(crate) engine: EngineChoice,
}

/// Where the taps of a network device come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TapSource {
    Named { name: String, queues: u16 },
    Passed(Vec<RawFd>),
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
    tap: Option<String>,
    tap_fds: Vec<RawFd>,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    cache: CacheMode,
    queues: Option<u16>,
    limits: Limits,
    engine: EngineChoice,
    once: bool,
    directory: Option<PathBuf>,
    cache_policy: CachePolicy,
    tag: Option<String>,
    threads: Option<usize>,
    writeback: bool,
    remote_locks: bool,
}

impl Options {
    fn tap_source(&mut self) -> Option<TapSource> {
        match (self.tap.take(), std::mem::take(&mut self.tap_fds)) {
            (Some(name), fds) if fds.is_empty() => {
                Some(TapSource::Named { name, queues: self.queues.unwrap_or(1) })
            }
            (None, fds) if !fds.is_empty() && self.queues.is_none() => Some(TapSource::Passed(fds)),
            _ => None,
        }
    }
}

fn mac(word: &OsString) -> Result<[u8; 6], String> {
    let text = word.to_str().unwrap_or_default();
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|pair| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2)).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("--mac needs an address, not {}", word.to_string_lossy()))
}

fn number<T: std::str::FromStr>(option: &str, word: &OsString) -> Result<T, String> {
    let parsed = word.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{option} needs a number, not {}", word.to_string_lossy()))
}

fn one_of<T, const N: usize>(option: &str, word: &OsString, known: [(&str, T); N]) -> Result<T, String> {
    let names = known.each_ref().map(|(name, _)| *name).join(", ");
    let found = known.into_iter().find(|(name, _)| word.to_str() == Some(name));
    found
        .map(|(_, value)| value)
        .ok_or_else(|| format!("{option} is one of {names}, not {}", word.to_string_lossy()))
}

/// A rate per second, and after a colon what can be saved up (otherwise as much as one second gives).
fn limit(option: &str, word: &OsString) -> Result<BucketConfig, String> {
    let text = word.to_str().unwrap_or_default();
    let (rate, burst) = text.split_once(':').unwrap_or((text, text));
    match (rate.parse(), burst.parse()) {
        (Ok(rate), Ok(burst)) if rate > 0 && burst > 0 => Ok(BucketConfig { rate, burst }),
        _ => Err(format!("{option} needs a number or two, not {}", word.to_string_lossy())),
    }
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
                "--writeback" => Some(&mut options.writeback),
                "--remote-locks" => Some(&mut options.remote_locks),
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
                "--tap" => options.tap = Some(value()?.to_string_lossy().into_owned()),
                "--tap-fd" => options.tap_fds.push(number(name, &value()?)?),
                "--mac" => options.mac = Some(mac(&value()?)?),
                "--mtu" => options.mtu = Some(number(name, &value()?)?),
                "--serial" => options.serial = Some(value()?.to_string_lossy().into_owned()),
                "--guest-cid" => options.guest_cid = Some(number(name, &value()?)?),
                "--cache" if kind == "fs" => {
                    let known = [
                        ("auto", CachePolicy::Auto),
                        ("always", CachePolicy::Always),
                        ("none", CachePolicy::None),
                    ];
                    options.cache_policy = one_of(name, &value()?, known)?;
                }
                "--cache" => {
                    let known = [
                        ("none", CacheMode::None),
                        ("writeback", CacheMode::Writeback),
                        ("direct", CacheMode::Direct),
                    ];
                    options.cache = one_of(name, &value()?, known)?;
                }
                "--engine" => {
                    let known = [
                        ("auto", EngineChoice::Auto),
                        ("uring", EngineChoice::Uring),
                        ("pool", EngineChoice::Pool),
                    ];
                    options.engine = one_of(name, &value()?, known)?;
                }
                "--queues" => options.queues = Some(number(name, &value()?)?),
                "--bandwidth" => options.limits.bandwidth = Some(limit(name, &value()?)?),
                "--operations" => options.limits.operations = Some(limit(name, &value()?)?),
                "--max-connections" => options.max_connections = Some(number(name, &value()?)?),
                "--directory" => options.directory = Some(value()?.into()),
                "--tag" => options.tag = Some(value()?.to_string_lossy().into_owned()),
                "--threads" => options.threads = Some(number(name, &value()?)?),
                _ => return Err(format!("Unknown argument {}; {USAGE}", word.to_string_lossy())),
            }
        }
        let missing = |name| move || format!("{name} is missing; {USAGE}");
        let device = match kind.to_str() {
            Some("rng") if options.path.is_none() && options.guest_cid.is_none() => Device::Rng,
            Some("block") => Device::Block(Block {
                file: options.file.ok_or_else(missing("--file"))?,
                readonly: options.readonly,
                serial: options.serial.unwrap_or_default(),
                cache: options.cache,
                queues: options.queues.unwrap_or(1),
                limits: options.limits,
                engine: options.engine,
            }),
            Some("net") => Device::Net {
                tap: options.tap_source().ok_or_else(missing("--tap or --tap-fd"))?,
                mac: options.mac.ok_or_else(missing("--mac"))?,
                mtu: options.mtu,
                limits: options.limits,
            },
            Some("vsock") => Device::Vsock {
                path: options.path.ok_or_else(missing("--uds"))?,
                guest_cid: options.guest_cid.ok_or_else(missing("--guest-cid"))?,
                max_connections: options.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
            },
            Some("fs") => Device::Fs(Share {
                directory: options.directory.ok_or_else(missing("--directory"))?,
                cache: options.cache_policy,
                readonly: options.readonly,
                // Front ends such as QEMU have a tag of their own and never ask for this one.
                tag: options.tag.unwrap_or_else(|| "share".into()),
                threads: options.threads,
                writeback: options.writeback,
                remote_locks: options.remote_locks,
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
        let block = Device::Block(Block {
            file: "/f".into(),
            readonly: true,
            serial: "x".into(),
            cache: CacheMode::Direct,
            queues: 4,
            limits: Limits {
                bandwidth: Some(BucketConfig { rate: 1000, burst: 1000 }),
                operations: Some(BucketConfig { rate: 10, burst: 20 }),
            },
            engine: EngineChoice::Pool,
        });
        let line = "block --file /f --readonly --serial x --cache direct --queues 4 --bandwidth 1000 \
                    --operations 10:20 --engine pool --socket /s";
        assert_eq!(parse(line).map(|found| found.device), Ok(block));
        let device = Device::Vsock { path: "/u".into(), guest_cid: 3, max_connections: 9 };
        let vsock = Arguments { device, socket: "/s".into(), once: false };
        assert_eq!(parse("vsock --uds /u --guest-cid 3 --socket /s --max-connections 9"), Ok(vsock));
        let tap = TapSource::Passed(vec![5, 6]);
        let device =
            Device::Net { tap, mac: [2, 0, 0, 0, 0, 0x1f], mtu: Some(1400), limits: Limits::default() };
        let net = Arguments { device, socket: "/s".into(), once: false };
        let line = "net --socket /s --tap-fd 5 --tap-fd 6 --mac 02:00:00:00:00:1f --mtu 1400";
        assert_eq!(parse(line), Ok(net));
        let share = Share {
            directory: "/d".into(),
            cache: CachePolicy::None,
            readonly: true,
            tag: "root".into(),
            threads: Some(3),
            writeback: true,
            remote_locks: true,
        };
        let fs = Arguments { device: Device::Fs(share), socket: "/s".into(), once: false };
        let line = "fs --socket /s --directory /d --cache none --readonly --tag root --threads 3 --writeback --remote-locks";
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
            ("net --socket /s --mac 02:00:00:00:00:01", "--tap or --tap-fd is missing"),
            ("net --socket /s --mac 02:00:00:00:00:01 --tap t --tap-fd 5", "--tap or --tap-fd is missing"),
            ("net --socket /s --tap t --mac 02:00:00:00:00", "not 02:00:00:00:00"),
            ("fs --socket /s", "--directory is missing"),
            ("fs --socket /s --directory /d --cache never", "auto, always, none, not never"),
            ("block --cache back", "none, writeback, direct, not back"),
            ("block --operations 0", "--operations needs a number"),
            ("block --bandwidth 5:x", "not 5:x"),
            ("vsock --frob", "--frob"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(name), "{line}: {message}");
        }
    }
}
