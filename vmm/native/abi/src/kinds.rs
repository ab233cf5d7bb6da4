//! The device kinds: from plain settings to a core, its counters and its controls. One function each, and nothing
//! else here knows more than one kind.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strato_devices::balloon::{Balloon, BalloonConfig, BalloonControl};
use strato_devices::block::{Block, BlockConfig, BlockControl};
use strato_devices::console::{Console, ConsoleConfig, ConsoleControl};
use strato_devices::fs::passthrough::{CachePolicy, Passthrough, PassthroughConfig, Root, ShareConfig};
use strato_devices::fs::{Fs, FsConfig};
use strato_devices::net::{Net, NetConfig, NetControl};
use strato_devices::rng::{Rng, RngConfig};
use strato_devices::vsock::{Vsock, VsockConfig, VsockControl};
use strato_plumbing::{Failure, Result};
use strato_virtio::thread::for_all;

use crate::device::Parts;

/// What can be changed while a device runs.
#[derive(Clone, Debug)]
pub enum Control {
    /// Nothing.
    None,
    /// A disk's size and limits.
    Block(DiskControl),
    /// The shares of a device that has several.
    Shares(SharesControl),
    /// A network interface's link, limits and taps.
    Net(NetControl),
    /// A console's size.
    Console(ConsoleControl),
    /// A balloon's target.
    Balloon(BalloonControl),
    /// A socket device's connections.
    Vsock(VsockControl),
}

/// What a core says when it cannot be made, in this library's words.
fn made<T>(kind: &str, outcome: io::Result<T>) -> Result<T> {
    outcome.map_err(|error| match error.raw_os_error() {
        Some(errno) => Failure::new(format!("Device {kind} cannot be made"), errno),
        None => Failure::refused(format!("Device {kind} cannot be made: {error}")),
    })
}

/// The entropy device.
///
/// # Errors
/// No descriptors.
pub fn rng(config: RngConfig) -> Result<Parts> {
    let core = made("rng", Rng::new(config))?;
    let metrics = core.metrics();
    Ok(Parts { core: Box::new(core), counters: Box::new(move || metrics.snapshot()), control: Control::None })
}

/// The socket device.
///
/// # Errors
/// Its path cannot be listened at, or a reserved context id.
pub fn vsock(guest_cid: u64, path: PathBuf, max_connections: usize) -> Result<Parts> {
    let what = format!("vsock at {}", path.display());
    let core = made(&what, Vsock::new(VsockConfig { guest_cid, path, max_connections }))?;
    let (metrics, control) = (core.metrics(), core.control());
    Ok(Parts {
        core: Box::new(core),
        counters: Box::new(move || metrics.snapshot()),
        control: Control::Vsock(control),
    })
}

/// The block device.
///
/// # Errors
/// The file is no disk, or the host has not what the configuration asks for.
pub fn block(config: BlockConfig) -> Result<Parts> {
    let (file, readonly) = (made("block", config.file.try_clone())?, config.readonly);
    let core = made("block", Block::new(config))?;
    let (metrics, control) = (core.metrics(), core.control());
    Ok(Parts {
        core: Box::new(core),
        counters: Box::new(move || metrics.snapshot()),
        control: Control::Block(DiskControl { core: control, file: Arc::new(file), readonly }),
    })
}

/// The size and limits of a disk in use.
#[derive(Clone, Debug)]
pub struct DiskControl {
    core: BlockControl,
    /// The same open file as the core's.
    file: Arc<File>,
    readonly: bool,
}

impl DiskControl {
    /// What the core offers itself.
    pub fn core(&self) -> &BlockControl {
        &self.core
    }

    /// Makes the disk `bytes` large and tells the driver; returns what it sees, which is whole blocks. A regular file
    /// that is smaller grows, by a hole. Of anything else the size must be that already: its owner has changed it.
    ///
    /// # Errors
    /// EINVAL, in words: the disk would shrink, is read-only, or is a block device of another size. Or the file system
    /// refuses.
    pub fn grow(&self, bytes: u64) -> Result<u64> {
        let failed =
            |what: &str, error: &io::Error| Failure::new(what, error.raw_os_error().unwrap_or(libc::EIO));
        let unknown = |error: io::Error| failed("Its size cannot be found out", &error);
        // Metadata of block devices have no length. Nobody uses the position: all accesses name theirs.
        let present = (&*self.file).seek(SeekFrom::End(0)).map_err(unknown)?;
        let regular = self.file.metadata().map_err(unknown)?.is_file();
        if bytes != present {
            if !regular {
                return Err(Failure::refused(format!(
                    "It is a block device of {present} bytes: change the device's size on the host, then name that"
                )));
            }
            if bytes < present {
                return Err(Failure::refused(format!(
                    "It has {present} bytes, and disks in use do not shrink: the guest's data beyond would be lost"
                )));
            }
            if self.readonly {
                return Err(Failure::refused(format!(
                    "It is read-only and has {present} bytes: change the file's size on the host, then name that"
                )));
            }
            if i64::try_from(bytes).is_err() {
                return Err(Failure::refused(format!("No file can have {bytes} bytes")));
            }
            let file = Arc::clone(&self.file);
            // Threads of shares set lengths, the caller may have no right to it; the keeper has that of all threads.
            for_all(move || file.set_len(bytes))
                .and_then(|done| done)
                .map_err(|error| failed("Its file cannot grow", &error))?;
        }
        self.core.resize().map_err(|error| failed("The guest cannot be told", &error))
    }
}

/// The network device.
///
/// # Errors
/// An address or MTU that cannot be, or no descriptors.
pub fn net(config: NetConfig) -> Result<Parts> {
    let core = made("net", Net::new(config))?;
    let (metrics, control) = (core.metrics(), core.control());
    Ok(Parts {
        core: Box::new(core),
        counters: Box::new(move || metrics.snapshot()),
        control: Control::Net(control),
    })
}

/// The console device.
///
/// # Errors
/// No port or too many, a name that is too long, or no descriptors.
pub fn console(config: ConsoleConfig) -> Result<Parts> {
    let core = made("console", Console::new(config))?;
    let (metrics, control) = (core.metrics(), core.control());
    Ok(Parts {
        core: Box::new(core),
        counters: Box::new(move || metrics.snapshot()),
        control: Control::Console(control),
    })
}

/// The balloon.
///
/// # Errors
/// No descriptors.
pub fn balloon(config: BalloonConfig) -> Result<Parts> {
    let core = made("balloon", Balloon::new(config))?;
    let (metrics, control) = (core.metrics(), core.control());
    Ok(Parts {
        core: Box::new(core),
        counters: Box::new(move || metrics.snapshot()),
        control: Control::Balloon(control),
    })
}

/// What a share is, in plain settings.
#[derive(Debug)]
pub struct FsSettings {
    /// The shared folder; none: the device has a root of its own, below which shares come and go.
    pub directory: Option<OwnedFd>,
    /// The device.
    pub config: FsConfig,
    /// Everything that writes is EROFS.
    pub readonly: bool,
    /// Locks are taken on the host's files; if not, they are the guest's own.
    pub remote_locks: bool,
    /// The process's budget of descriptors is divided by this many shares.
    pub shares: usize,
}

/// The file-system device.
///
/// # Errors
/// The folder is none, /proc is out of reach, no threads, or locks on the host's files in confined threads.
pub fn fs(settings: FsSettings) -> Result<Parts> {
    let FsSettings { directory, config, readonly, remote_locks, shares } = settings;
    let what = format!("fs {}", config.tag);
    // The first lock would end the process.
    if remote_locks && strato_jail::confinement().is_some() {
        return Err(Failure::refused(format!(
            "Device {what} cannot take locks on the host's files while its threads are confined: switch one of the two off"
        )));
    }
    let cache = config.cache;
    let root = match directory {
        Some(directory) => Root::Directory(ShareConfig { cache, readonly, ..ShareConfig::new(directory) }),
        None => Root::Collection,
    };
    let several = matches!(root, Root::Collection);
    let mut host = made(&what, PassthroughConfig::new(root))?;
    host.remote_locks = remote_locks;
    host.limits.nodes /= shares.max(1);
    host.limits.handles /= shares.max(1);
    let host = Arc::new(made(&what, for_all(move || Passthrough::new(host)).and_then(|made| made))?);
    let held = host.metrics();
    let control = match several {
        true => Control::Shares(SharesControl { host: Arc::clone(&host), cache, readonly }),
        false => Control::None,
    };
    let core = made(&what, Fs::new(config, host))?;
    let metrics = core.metrics();
    let counters = move || metrics.snapshot().into_iter().chain(held.snapshot()).collect();
    Ok(Parts { core: Box::new(core), counters: Box::new(counters), control })
}

/// The shares below a device's root.
#[derive(Clone)]
pub struct SharesControl {
    host: Arc<Passthrough>,
    cache: CachePolicy,
    readonly: bool,
}

impl std::fmt::Debug for SharesControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharesControl").finish_non_exhaustive()
    }
}

impl SharesControl {
    /// Adds a share with the device's cache policy; read-only if it or the device is.
    ///
    /// # Errors
    /// EEXIST, ENOSPC, or the folder cannot be used.
    pub fn add(&self, name: &CStr, directory: OwnedFd, readonly: bool) -> io::Result<()> {
        let readonly = readonly || self.readonly;
        let share = ShareConfig { cache: self.cache, readonly, ..ShareConfig::new(directory) };
        let (host, name) = (Arc::clone(&self.host), name.to_owned());
        // The folder may be another user's, and the caller have no power any more.
        for_all(move || host.add_share(&name, share))?
    }

    /// Removes a share and waits until no descriptor below it is left.
    ///
    /// # Errors
    /// ENOENT: there is none; ETIMEDOUT: it is gone for the guest, but a request is still in flight.
    pub fn remove(&self, name: &CStr, timeout: Duration) -> io::Result<()> {
        self.host.remove_share(name, timeout)
    }
}
