//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

const USAGE: &str = "usage: strato-vhost-device rng --socket PATH [--once]\n\
       strato-vhost-device block --socket PATH --file PATH [--readonly] [--serial TEXT] [--ignore-flush] [--once]\n\
       strato-vhost-device net --socket PATH (--tap NAME [--queues N] | --tap-fd N ...) --mac ADDRESS [--mtu N] [--once]\n\
       strato-vhost-device vsock --socket PATH --uds PATH --guest-cid N [--max-connections N] [--once]";

const DEFAULT_MAX_CONNECTIONS: usize = 4096;

/// Which device is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Rng,
    Block { file: PathBuf, readonly: bool, serial: String, ignore_flush: bool },
    Net { tap: TapSource, mac: [u8; 6], mtu: Option<u16> },
    Vsock { path: PathBuf, guest_cid: u64, max_connections: usize },
}

/// Where the taps of a network device come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TapSource {
    Named { name: String, queues: usize },
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
    ignore_flush: bool,
    tap: Option<String>,
    tap_fds: Vec<RawFd>,
    queues: Option<usize>,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    once: bool,
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
                "--tap" => options.tap = Some(value()?.to_string_lossy().into_owned()),
                "--tap-fd" => options.tap_fds.push(number(name, &value()?)?),
                "--queues" => options.queues = Some(number(name, &value()?)?),
                "--mac" => options.mac = Some(mac(&value()?)?),
                "--mtu" => options.mtu = Some(number(name, &value()?)?),
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
            Some("net") => Device::Net {
                tap: options.tap_source().ok_or_else(missing("--tap or --tap-fd"))?,
                mac: options.mac.ok_or_else(missing("--mac"))?,
                mtu: options.mtu,
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
        let tap = TapSource::Passed(vec![5, 6]);
        let device = Device::Net { tap, mac: [2, 0, 0, 0, 0, 0x1f], mtu: Some(1400) };
        let net = Arguments { device, socket: "/s".into(), once: false };
        let line = "net --socket /s --tap-fd 5 --tap-fd 6 --mac 02:00:00:00:00:1f --mtu 1400";
        assert_eq!(parse(line), Ok(net));
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
            ("vsock --frob", "--frob"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(name), "{line}: {message}");
        }
    }
}
