//! One slot's device: has the guest's driver take it and let go of it, by sysfs (Documentation/ABI/testing/sysfs-bus-*
//! and Documentation/driver-api/driver-model of Linux), and says what has appeared.
//!
//! Both writes return when the kernel is done: a bind has read the disk's partition table by then, an unbind has waited
//! for what was under way. A device that does not answer holds up this helper for ever, and nobody else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::wire::{Answer, Bound};
use crate::errors::{AgentError, Context, ErrorKind, Result};

/// How long what a device is for the guest may take to appear, once it is bound.
const PATIENCE: Duration = Duration::from_secs(10);
/// A container's mounts go with its last process, and may be a moment behind.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);

/// VIRTIO 1.2, 5 "Device Types": those that come and go.
const NETWORK_CARD: u32 = 1;
const BLOCK_DEVICE: u32 = 2;
const FILE_SYSTEM: u32 = 26;

/// BindDevice.
pub fn bind(device: &str) -> Answer {
    Slot::find(device, &System)
        .and_then(|slot| slot.bind(PATIENCE))
        .map_or_else(Answer::Refused, Answer::Bound)
}

/// UnbindDevice.
pub fn unbind(device: &str) -> Answer {
    Slot::find(device, &System)
        .and_then(|slot| slot.unbind(UNMOUNT_PATIENCE))
        .map_or_else(Answer::Refused, |()| Answer::Done)
}

/// The kernel, whose part the tests play.
trait Kernel {
    /// Where sysfs and /dev are.
    fn root(&self) -> &Path;
    /// Writes to an attribute of sysfs.
    fn store(&self, attribute: &Path, text: &str) -> io::Result<()>;
    /// Opens a disk that nobody else has claimed; nobody can until it is closed.
    fn claim(&self, node: &Path) -> io::Result<File>;
}

struct System;

impl Kernel for System {
    fn root(&self) -> &Path {
        Path::new("/")
    }

    fn store(&self, attribute: &Path, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(attribute)?;
        file.write_all(text.as_bytes())
    }

    fn claim(&self, node: &Path) -> io::Result<File> {
        // O_EXCL without O_CREAT is EBUSY for a disk that is mounted, in whatever namespace, or part of another (open(2)).
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_EXCL).open(node)
    }
}

/// The platform device of a slot.
struct Slot<'a> {
    name: &'a str,
    directory: PathBuf,
    kernel: &'a dyn Kernel,
}

impl<'a> Slot<'a> {
    /// `name` has been checked.
    fn find(name: &'a str, kernel: &'a dyn Kernel) -> Result<Self> {
        let directory = kernel.root().join("sys/bus/platform/devices").join(name);
        if !directory.exists() {
            return Err(AgentError::not_found(format!(
                "Device {name} does not exist: the guest has no such slot"
            )));
        }
        Ok(Self {
            name,
            directory,
            kernel,
        })
    }

    fn bind(&self, patience: Duration) -> Result<Bound> {
        if self.is_bound() {
            return Err(self.bound_already());
        }
        self.store("bind")
            .map_err(|error| match error.raw_os_error() {
                // By somebody else, since the look above.
                Some(libc::EBUSY) => self.bound_already(),
                // What virtio_mmio_probe() of Linux makes of a DeviceID of 0.
                Some(libc::ENODEV) => AgentError::precondition(format!(
                    "Device {} has DeviceID 0: the host has put nothing into this slot",
                    self.name
                )),
                _ => AgentError::internal(format!("Binding device {}: {error}", self.name)),
            })?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(bound) = self.describe() {
                return Ok(bound);
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(POLL);
        }
        // As if nothing had been asked for: the host can take the device away.
        let _ = self.store("unbind");
        Err(AgentError::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "Device {} did not come up within {patience:?}: no driver of the guest has taken it",
                self.name
            ),
        ))
    }

    fn unbind(&self, patience: Duration) -> Result<()> {
        if !self.is_bound() {
            return Err(AgentError::precondition(format!(
                "Device {} is not bound",
                self.name
            )));
        }
        let mut claim = None;
        if let Some(found) = self.describe() {
            if !matches!(found.virtio_id, NETWORK_CARD | BLOCK_DEVICE | FILE_SYSTEM) {
                return Err(AgentError::precondition(format!(
                    "Device {} has virtio type {}, which stays: network cards, disks and file systems go",
                    self.name, found.virtio_id
                )));
            }
            if found.virtio_id == BLOCK_DEVICE {
                claim = Some(self.claim(&found.name, patience)?);
            }
        }
        self.store("unbind")
            .with_context(|| format!("Unbinding device {}", self.name))?;
        // The kernel forgets the disk, and its name, when the last who has it open lets go.
        drop(claim);
        Ok(())
    }

    fn claim(&self, disk: &str, patience: Duration) -> Result<File> {
        let deadline = Instant::now() + patience;
        loop {
            let error = match self.kernel.claim(&self.node(disk)) {
                Ok(claim) => return Ok(claim),
                Err(error) => error,
            };
            let in_use = error.raw_os_error() == Some(libc::EBUSY);
            if in_use && Instant::now() < deadline {
                sleep(POLL);
                continue;
            }
            let what = format!("Disk {disk} of device {}", self.name);
            return Err(if in_use {
                AgentError::precondition(format!("{what} is in use: unmount what is on it first"))
            } else {
                AgentError::internal(format!("{what} cannot be opened: {error}"))
            });
        }
    }

    fn is_bound(&self) -> bool {
        self.directory.join("driver").exists()
    }

    fn bound_already(&self) -> AgentError {
        AgentError::exists(format!("Device {} is bound already", self.name))
    }

    fn store(&self, attribute: &str) -> io::Result<()> {
        let driver = self
            .kernel
            .root()
            .join("sys/bus/platform/drivers/virtio-mmio");
        self.kernel.store(&driver.join(attribute), self.name)
    }

    fn node(&self, disk: &str) -> PathBuf {
        self.kernel.root().join("dev").join(disk)
    }

    /// What the device is for the guest; None as long as it cannot be used.
    fn describe(&self) -> Option<Bound> {
        let virtio = self.directory.join(entry(&self.directory, "virtio")?);
        if !virtio.join("driver").exists() {
            return None;
        }
        let id = text(&virtio.join("device"));
        let mut bound = Bound {
            virtio_id: u32::from_str_radix(id.strip_prefix("0x")?, 16).ok()?,
            ..Bound::default()
        };
        match bound.virtio_id {
            NETWORK_CARD => {
                bound.name = entry(&virtio.join("net"), "")?;
                bound.mac = text(&virtio.join("net").join(&bound.name).join("address"));
            }
            BLOCK_DEVICE => {
                bound.name = entry(&virtio.join("block"), "")?;
                if !self.node(&bound.name).exists() {
                    return None;
                }
                bound.serial = text(&virtio.join("block").join(&bound.name).join("serial"));
            }
            _ => {}
        }
        Some(bound)
    }
}

/// The one entry of a folder that begins so.
fn entry(directory: &Path, prefix: &str) -> Option<String> {
    fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with(prefix))
}

/// An attribute without the end of its line; empty when there is none.
fn text(attribute: &Path) -> String {
    fs::read_to_string(attribute).map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests;
