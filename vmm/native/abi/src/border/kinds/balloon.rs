//! The balloon: its target, and what the guest says of itself.

use std::ffi::c_char;
use std::time::{Duration, UNIX_EPOCH};

use strato_devices::balloon::{BalloonConfig, BalloonControl, BalloonInfo, STATS};
use strato_plumbing::border::{check_size, null, store};
use strato_plumbing::{Failure, Result};

use super::super::{Events, border, create, device_of};
use crate::device::Device;
use crate::kinds::{self, Control};

/// `strato_vmm_balloon_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawBalloonConfig {
    pub(in super::super) size: u32,
    pub(in super::super) deflate_on_oom: u32,
    pub(in super::super) reporting: u32,
    pub(in super::super) stats_interval_s: u32,
}

/// `strato_vmm_balloon_info`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawBalloonInfo {
    pub(in super::super) target_bytes: u64,
    pub(in super::super) actual_bytes: u64,
    pub(in super::super) reported_bytes: u64,
    pub(in super::super) discarded_bytes: u64,
    pub(in super::super) updated_s: u64,
    pub(in super::super) stats: [u64; STATS],
}

impl From<BalloonInfo> for RawBalloonInfo {
    fn from(info: BalloonInfo) -> Self {
        let age = info.updated.and_then(|updated| updated.duration_since(UNIX_EPOCH).ok());
        Self {
            target_bytes: info.target,
            actual_bytes: info.actual,
            reported_bytes: info.reported,
            discarded_bytes: info.discarded,
            updated_s: age.map_or(0, |age| age.as_secs()),
            stats: info.stats.map(|stat| stat.unwrap_or(u64::MAX)),
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_balloon_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawBalloonConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawBalloonConfig>(raw.size.into(), "strato_vmm_balloon_config")?;
        let interval = Duration::from_secs(raw.stats_interval_s.into());
        let config = BalloonConfig {
            deflate_on_oom: raw.deflate_on_oom != 0,
            reporting: raw.reporting != 0,
            stats_interval: (!interval.is_zero()).then_some(interval),
        };
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::balloon(config)) }
    })
}

/// # Safety
/// As [`device_of`].
unsafe fn balloon_of<'a>(device: *const Device) -> Result<&'a BalloonControl> {
    // SAFETY: passed on to the caller.
    match unsafe { device_of(device) }?.control() {
        Control::Balloon(control) => Ok(control),
        _ => Err(Failure::refused("This device is no balloon")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_balloon_set_target(device: *mut Device, bytes: u64) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let outcome = unsafe { balloon_of(device) }?.set_target(bytes);
        outcome.map_err(|error| match error.raw_os_error() {
            Some(errno) => Failure::new("Balloon cannot be told its target", errno),
            None => Failure::refused(format!("Balloon cannot have {bytes} bytes; 2^44 - 1 are the most")),
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_balloon_get_info(device: *mut Device, ret: *mut RawBalloonInfo) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let info = unsafe { balloon_of(device) }?.info();
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, info.into()) }
    })
}
