//! The socket device behind the C border.

use std::ffi::{OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use strato_plumbing::Failure;
use strato_plumbing::border::{check_size, null, required};

use super::super::{Events, border, create, device_of};
use crate::device::Device;
use crate::kinds::{self, Control};

/// `strato_vmm_vsock_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawVsockConfig {
    size: u32,
    max_connections: u32,
    guest_cid: u64,
    path: *const c_char,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_vsock_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawVsockConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawVsockConfig>(raw.size.into(), "strato_vmm_vsock_config")?;
        // SAFETY: the header's rule for strings.
        let path = PathBuf::from(OsStr::from_bytes(unsafe { required(raw.path, "path") }?.to_bytes()));
        let most = usize::try_from(raw.max_connections).unwrap_or(usize::MAX);
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::vsock(raw.guest_cid, path, most)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_vsock_reset_transport(device: *mut Device) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let Control::Vsock(control) = unsafe { device_of(device) }?.control() else {
            return Err(Failure::refused("This device carries no vsock"));
        };
        control.reset_transport().map_err(|error| {
            Failure::new("Transport cannot be reset", error.raw_os_error().unwrap_or(libc::EIO))
        })
    })
}
