//! The constructors and verbs of each kind of device: raw settings become the cores' own.

mod balloon;
mod console;
mod vsock;

use std::ffi::{CStr, c_char};
use std::time::Duration;

use strato_devices::block::{BlockConfig, CacheMode, EngineChoice};
use strato_devices::fs::FsConfig;
use strato_devices::fs::passthrough::CachePolicy;
use strato_devices::net::{MAX_PAIRS, NetConfig, NetControl, Tap};
use strato_devices::rng::RngConfig;
use strato_devices::{BucketConfig, Limits};
use strato_plumbing::border::{check_size, null, optional, required, store};
use strato_plumbing::{Failure, Result};

use super::{Events, border, create, device_of, duplicate};
use crate::device::Device;
use crate::kinds::{self, Control, DiskControl, FsSettings, SharesControl};

pub use self::balloon::*;
pub use self::console::*;
pub use self::vsock::*;

/// `strato_vmm_rng_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawRngConfig {
    pub(super) size: u64,
    pub(super) rate: u64,
    pub(super) burst: u64,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_rng_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawRngConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawRngConfig>(raw.size, "strato_vmm_rng_config")?;
        if raw.rate == 0 || raw.burst == 0 {
            return Err(Failure::refused("Rate and burst of an entropy device must not be 0"));
        }
        let config = RngConfig { limit: BucketConfig { rate: raw.rate, burst: raw.burst } };
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::rng(config)) }
    })
}

/// `strato_vmm_limits`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawLimits {
    pub(super) bandwidth: u64,
    pub(super) bandwidth_burst: u64,
    pub(super) operations: u64,
    pub(super) operations_burst: u64,
}

fn bucket(rate: u64, burst: u64) -> Option<BucketConfig> {
    // Without a burst of its own a limit lets a second's worth through at once.
    (rate != 0).then_some(BucketConfig { rate, burst: if burst == 0 { rate } else { burst } })
}

impl From<RawLimits> for Limits {
    fn from(raw: RawLimits) -> Self {
        Self {
            bandwidth: bucket(raw.bandwidth, raw.bandwidth_burst),
            operations: bucket(raw.operations, raw.operations_burst),
        }
    }
}

/// `strato_vmm_block_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawBlockConfig {
    pub(super) size: u32,
    pub(super) fd: i32,
    pub(super) cache: u32,
    pub(super) readonly: u32,
    pub(super) engine: u32,
    pub(super) num_queues: u32,
    pub(super) serial: *const c_char,
    pub(super) limits: RawLimits,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_block_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawBlockConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawBlockConfig>(raw.size.into(), "strato_vmm_block_config")?;
        // SAFETY: the header's rule for strings.
        let serial = unsafe { optional(raw.serial) }.map(|text| text.to_string_lossy().into_owned());
        let config = BlockConfig {
            file: duplicate(raw.fd)?.into(),
            cache: match raw.cache {
                0 => CacheMode::Writeback,
                1 => CacheMode::None,
                2 => CacheMode::Direct,
                other => return Err(unknown("Cache mode", other)),
            },
            readonly: raw.readonly != 0,
            serial: serial.unwrap_or_default(),
            num_queues: u16::try_from(raw.num_queues).map_err(|_| unknown("Queue number", raw.num_queues))?,
            limits: raw.limits.into(),
            engine: match raw.engine {
                0 => EngineChoice::Auto,
                1 => EngineChoice::Uring,
                2 => EngineChoice::Pool,
                other => return Err(unknown("Engine", other)),
            },
        };
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::block(config)) }
    })
}

/// # Safety
/// As [`device_of`].
unsafe fn block_of<'a>(device: *const Device) -> Result<&'a DiskControl> {
    // SAFETY: passed on to the caller.
    match unsafe { device_of(device) }?.control() {
        Control::Block(control) => Ok(control),
        _ => Err(Failure::refused("This device is no disk")),
    }
}

fn changed<T>(outcome: std::io::Result<T>) -> Result<T> {
    outcome.map_err(|error| Failure::new("Disk cannot be changed", error.raw_os_error().unwrap_or(libc::EIO)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_block_resize(device: *mut Device, ret: *mut u64) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let bytes = changed(unsafe { block_of(device) }?.core().resize())?;
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, bytes) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_block_grow(device: *mut Device, bytes: u64, ret: *mut u64) -> i32 {
    border(|| {
        if ret.is_null() {
            return Err(null("ret"));
        }
        // SAFETY: the header's rule for handles.
        let seen = unsafe { block_of(device) }?.grow(bytes)?;
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, seen) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_block_set_limits(device: *mut Device, limits: *const RawLimits) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let limits = unsafe { limits.as_ref() }.ok_or_else(|| null("limits"))?;
        // SAFETY: the header's rule for handles.
        changed(unsafe { block_of(device) }?.core().set_limits((*limits).into()))
    })
}

/// `strato_vmm_net_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawNetConfig {
    size: u32,
    num_taps: u32,
    tap_fds: *const i32,
    tap_name: *const c_char,
    mac: [u8; 6],
    mtu: u16,
    link_up: u32,
    receive_limits: RawLimits,
    transmit_limits: RawLimits,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_net_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawNetConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawNetConfig>(raw.size.into(), "strato_vmm_net_config")?;
        // SAFETY: the header's rule for strings.
        let taps = match unsafe { optional(raw.tap_name) } {
            Some(name) => named_taps(&name.to_string_lossy(), raw.num_taps)?,
            // SAFETY: the header's rule for this array.
            None => unsafe { passed_taps(raw.tap_fds, raw.num_taps) }?,
        };
        let config = NetConfig {
            taps,
            mac: raw.mac,
            mtu: (raw.mtu != 0).then_some(raw.mtu),
            link_up: raw.link_up != 0,
            receive_limits: raw.receive_limits.into(),
            transmit_limits: raw.transmit_limits.into(),
        };
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::net(config)) }
    })
}

fn tap_failure(what: &str, error: &std::io::Error) -> Failure {
    match error.raw_os_error() {
        Some(errno) => Failure::new(format!("{what} cannot be used"), errno),
        None => Failure::refused(format!("{what} cannot be used: {error}")),
    }
}

fn named_taps(name: &str, count: u32) -> Result<Vec<Tap>> {
    let queues = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_PAIRS);
    Tap::open(name, queues).map_err(|error| tap_failure(&format!("Tap {name}"), &error))
}

/// # Safety
/// `fds` is null or an array of `count` numbers.
unsafe fn passed_taps(fds: *const i32, count: u32) -> Result<Vec<Tap>> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if fds.is_null() || count > MAX_PAIRS {
        return Err(Failure::refused("Taps are one to 256 descriptors"));
    }
    // SAFETY: passed on to the caller.
    let fds = unsafe { std::slice::from_raw_parts(fds, count) };
    let tap = |fd: i32| Tap::new(duplicate(fd)?).map_err(|error| tap_failure(&format!("Tap {fd}"), &error));
    fds.iter().map(|&fd| tap(fd)).collect()
}

/// # Safety
/// As [`device_of`].
unsafe fn net_of<'a>(device: *const Device) -> Result<&'a NetControl> {
    // SAFETY: passed on to the caller.
    match unsafe { device_of(device) }?.control() {
        Control::Net(control) => Ok(control),
        _ => Err(Failure::refused("This device is no network interface")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_net_set_link(device: *mut Device, up: u32) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        unsafe { net_of(device) }?.set_link(up != 0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_net_set_limits(
    device: *mut Device,
    receive: *const RawLimits,
    transmit: *const RawLimits,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let (receive, transmit) = unsafe { (receive.as_ref(), transmit.as_ref()) };
        // SAFETY: the header's rule for handles.
        let control = unsafe { net_of(device) }?;
        if let Some(limits) = receive {
            control.set_receive_limits((*limits).into());
        }
        if let Some(limits) = transmit {
            control.set_transmit_limits((*limits).into());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_net_set_taps(
    device: *mut Device,
    tap_fds: *const i32,
    num_taps: u32,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let control = unsafe { net_of(device) }?;
        // SAFETY: the header's rule for this array.
        control.set_taps(unsafe { passed_taps(tap_fds, num_taps) }?);
        Ok(())
    })
}

/// `strato_vmm_fs_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawFsConfig {
    size: u32,
    directory_fd: i32,
    cache: u32,
    readonly: u32,
    writeback: u32,
    shares: u32,
    remote_locks: u32,
    reserved: u32,
    tag: *const c_char,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_fs_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawFsConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawFsConfig>(raw.size.into(), "strato_vmm_fs_config")?;
        let settings = FsSettings {
            directory: (raw.directory_fd >= 0).then(|| duplicate(raw.directory_fd)).transpose()?,
            config: FsConfig {
                // SAFETY: the header's rule for strings.
                tag: unsafe { required(raw.tag, "tag") }?.to_string_lossy().into_owned(),
                cache: match raw.cache {
                    0 => CachePolicy::Auto,
                    1 => CachePolicy::Always,
                    2 => CachePolicy::None,
                    other => return Err(unknown("Cache policy", other)),
                },
                writeback: raw.writeback != 0,
                ..FsConfig::default()
            },
            readonly: raw.readonly != 0,
            remote_locks: raw.remote_locks != 0,
            shares: usize::try_from(raw.shares).unwrap_or(usize::MAX),
        };
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::fs(settings)) }
    })
}

/// `strato_vmm_fs_share`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawFsShare {
    size: u32,
    directory_fd: i32,
    readonly: u32,
    reserved: u32,
    name: *const c_char,
}

/// # Safety
/// As [`device_of`].
unsafe fn shares_of<'a>(device: *const Device) -> Result<&'a SharesControl> {
    // SAFETY: passed on to the caller.
    match unsafe { device_of(device) }?.control() {
        Control::Shares(control) => Ok(control),
        _ => Err(Failure::refused("This device has one folder, or none, and no shares below it")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_fs_add_share(device: *mut Device, share: *const RawFsShare) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { share.as_ref() }.ok_or_else(|| null("share"))?;
        check_size::<RawFsShare>(raw.size.into(), "strato_vmm_fs_share")?;
        // SAFETY: the header's rules for strings and handles.
        let (name, control) = unsafe { (required(raw.name, "name")?, shares_of(device)?) };
        let outcome = control.add(name, duplicate(raw.directory_fd)?, raw.readonly != 0);
        share_outcome("added", name, outcome)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_fs_remove_share(
    device: *mut Device,
    name: *const c_char,
    timeout_ms: u32,
) -> i32 {
    border(|| {
        // SAFETY: the header's rules for strings and handles.
        let (name, control) = unsafe { (required(name, "name")?, shares_of(device)?) };
        share_outcome("removed", name, control.remove(name, Duration::from_millis(timeout_ms.into())))
    })
}

fn share_outcome(what: &str, name: &CStr, outcome: std::io::Result<()>) -> Result<()> {
    outcome.map_err(|error| {
        let text = format!("Share {} cannot be {what}", name.to_string_lossy());
        Failure::new(text, error.raw_os_error().unwrap_or(libc::EIO))
    })
}

fn unknown(what: &str, number: u32) -> Failure {
    Failure::refused(format!("{what} {number} is unknown"))
}
