//! `strato-vhost-device`: serves one device core on one vhost-user socket.
//!
//! strato-vmm starts one per device for the tcg engine and watches it; its death ends the VM. The
//! appearance of the socket is the sign that it is ready. It prints nothing but complaints, on stderr.

mod arguments;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::sync::Arc;

use strato_devices::block::{Block, BlockConfig};
use strato_devices::fs::passthrough::{Passthrough, PassthroughConfig, Root, ShareConfig};
use strato_devices::fs::{Fs, FsConfig};
use strato_devices::net::{Net, NetConfig, Tap};
use strato_devices::rng::{Rng, RngConfig};
use strato_devices::vsock::{Vsock, VsockConfig};
use strato_vhost_user::Server;
use strato_virtio::DeviceCore;
use strato_vmm::device::chain;

use self::arguments::{Arguments, Device, Share, TapSource};

/// A wrong command line, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            log(&message);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    abort_on_panic();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// A panic anywhere ends the process: a device whose thread is gone must not look alive.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let core: Box<dyn DeviceCore> = match &arguments.device {
        Device::Rng => Box::new(Rng::new(RngConfig::default())?),
        Device::Block(block) => {
            let file = OpenOptions::new().read(true).write(!block.readonly).open(&block.file)?;
            Box::new(Block::new(BlockConfig {
                file,
                cache: block.cache,
                readonly: block.readonly,
                serial: block.serial.clone(),
                num_queues: block.queues,
                limits: block.limits,
                engine: block.engine,
            })?)
        }
        Device::Net { tap, mac, mtu, limits } => {
            let taps = match tap {
                TapSource::Named { name, queues } => Tap::open(name, usize::from(*queues))?,
                TapSource::Passed(fds) => {
                    fds.iter().map(|&fd| Tap::new(passed(fd)?)).collect::<Result<_, _>>()?
                }
            };
            Box::new(Net::new(NetConfig {
                taps,
                mac: *mac,
                mtu: *mtu,
                link_up: true,
                receive_limits: *limits,
                transmit_limits: *limits,
            })?)
        }
        Device::Vsock { path, guest_cid, max_connections } => {
            // One descriptor for each stream, and some for the process itself.
            raise_descriptor_limit(*max_connections as u64 + 64);
            Box::new(Vsock::new(VsockConfig {
                guest_cid: *guest_cid,
                path: path.clone(),
                max_connections: *max_connections,
            })?)
        }
        Device::Fs(share) => {
            // One descriptor for each file that the guest knows of.
            raise_descriptor_limit(u64::MAX);
            fs(share)?
        }
    };
    let server = Server::new(&arguments.socket, core)?;
    let mut report = |what: &dyn std::fmt::Display| log(&format!("Refused a front-end request: {what}"));
    if arguments.once {
        server.serve_one(&mut report)?
    } else {
        server.serve(&mut report)?
    }
    Ok(())
}

/// A descriptor that whoever started this program left open for it.
fn passed(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number; it says whether that is a descriptor.
    if fd <= libc::STDERR_FILENO || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, it is none of the standard ones, and it was passed for the device to own.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn fs(share: &Share) -> Result<Box<dyn DeviceCore>, Box<dyn std::error::Error>> {
    let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&share.directory)?;
    let shared =
        ShareConfig { cache: share.cache, readonly: share.readonly, ..ShareConfig::new(directory.into()) };
    let mut host = PassthroughConfig::new(Root::Directory(shared))?;
    host.remote_locks = share.remote_locks;
    let host = Passthrough::new(host)?;
    let mut config = FsConfig {
        tag: share.tag.clone(),
        cache: share.cache,
        writeback: share.writeback,
        ..FsConfig::default()
    };
    if let Some(threads) = share.threads {
        config.threads = threads;
    }
    Ok(Box::new(Fs::new(config, Arc::new(host))?))
}

/// Raises the soft limit of open files to `wanted`, or as far as the hard limit lets it.
fn raise_descriptor_limit(wanted: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur >= wanted {
        return;
    }
    limit.rlim_cur = wanted.min(limit.rlim_max);
    // SAFETY: as above. If it fails, fewer streams fit, and those beyond wait for their turn.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

fn log(line: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "strato-vhost-device: {line}");
}
