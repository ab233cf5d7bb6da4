//! Small parts of the guest that the host sets: hostname, resolv.conf, entropy, shares; and the guest's end.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::errors::{AgentError, Context, Result};
use crate::paths;
use crate::proto::agent::Share;

/// Credited at once at most, in bytes: the kernel's pool holds 32.
const MAX_ENTROPY: usize = 512;

pub fn set_hostname(hostname: &str) -> Result<()> {
    nix::unistd::sethostname(hostname).with_context(|| format!("Setting the hostname {hostname:?}"))
}

pub fn write_resolv_conf(content: &[u8]) -> Result<()> {
    fs::write(paths::RESOLV_CONF, content)
        .with_context(|| format!("Writing {}", paths::RESOLV_CONF))
}

/// struct rand_pool_info (linux/random.h) with room for one request.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_ENTROPY],
}

/// RNDADDENTROPY and RNDRESEEDCRNG (linux/random.h): `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Feeds and credits host randomness, then makes the generator use it at once.
pub fn add_entropy(entropy: &[u8]) -> Result<()> {
    if entropy.is_empty() {
        return Ok(());
    }
    let device = OpenOptions::new()
        .write(true)
        .open("/dev/random")
        .context("Opening /dev/random")?;
    let mut info = RandPoolInfo {
        entropy_count: 0,
        buf_size: 0,
        buf: [0; MAX_ENTROPY],
    };
    let used = entropy.len().min(MAX_ENTROPY);
    info.buf[..used].copy_from_slice(&entropy[..used]);
    let size = libc::c_int::try_from(used).unwrap_or(0);
    info.buf_size = size;
    info.entropy_count = size * 8;
    // SAFETY: the kernel reads the header and buf_size bytes behind it, all inside `info`.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if added != 0 {
        return Err(std::io::Error::last_os_error()).context("Adding entropy");
    }
    // SAFETY: takes no argument. A kernel that has not gathered its first seed yet may refuse; then it seeds soon.
    unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    Ok(())
}

/// Mounts a virtio-fs share.
pub fn mount_share(share: &Share) -> Result<()> {
    let target = Path::new(&share.mount_point);
    let climbs = target
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !target.is_absolute() || climbs || share.tag.is_empty() {
        return Err(AgentError::invalid(format!(
            "Share {:?} on {:?} needs a tag and an absolute mount point",
            share.tag, share.mount_point
        )));
    }
    fs::create_dir_all(target).with_context(|| format!("Creating {}", share.mount_point))?;
    let mut flags = MsFlags::empty();
    if share.readonly {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(
        Some(share.tag.as_str()),
        target,
        Some("virtiofs"),
        flags,
        None::<&str>,
    )
    .with_context(|| format!("Mounting share {:?} on {}", share.tag, share.mount_point))
}

/// Writes everything out and ends the guest; does not return when that works.
pub fn power_off() {
    nix::unistd::sync();
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
        let Err(error) = reboot(mode);
        crate::warning!("Powering off failed: {error}");
    }
}
