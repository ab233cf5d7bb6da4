//! The console device: its ports and the size of the terminal behind the first.

use std::ffi::c_char;

use strato_devices::console::{ConsoleConfig, ConsoleControl, MAX_PORTS, PortConfig};
use strato_plumbing::border::{check_size, null, optional};
use strato_plumbing::{Failure, Result};

use super::super::{Events, border, create, device_of, duplicate};
use crate::device::Device;
use crate::kinds::{self, Control};

/// `strato_vmm_console_port`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawConsolePort {
    pub(in super::super) name: *const c_char,
    pub(in super::super) input_fd: i32,
    pub(in super::super) output_fd: i32,
    pub(in super::super) console: u32,
    pub(in super::super) reserved: u32,
}

/// `strato_vmm_console_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawConsoleConfig {
    pub(in super::super) size: u32,
    pub(in super::super) num_ports: u32,
    pub(in super::super) ports: *const RawConsolePort,
    pub(in super::super) columns: u16,
    pub(in super::super) rows: u16,
    pub(in super::super) reserved: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_console_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawConsoleConfig,
    ret: *mut *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawConsoleConfig>(raw.size.into(), "strato_vmm_console_config")?;
        let config = ConsoleConfig {
            // SAFETY: the header's rule for this array.
            ports: unsafe { ports(raw.ports, raw.num_ports) }?,
            size: (raw.columns, raw.rows),
        };
        // SAFETY: the header's rules.
        unsafe { create(events, tag, name, ret, || kinds::console(config)) }
    })
}

/// # Safety
/// `ports` is null or an array of `count` ports, each with a string or null.
unsafe fn ports(ports: *const RawConsolePort, count: u32) -> Result<Vec<PortConfig>> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if ports.is_null() || count > MAX_PORTS {
        return Err(Failure::refused(format!("A console has 1 to {MAX_PORTS} ports, not {count}")));
    }
    // SAFETY: passed on to the caller.
    let ports = unsafe { std::slice::from_raw_parts(ports, count) };
    // SAFETY: passed on to the caller.
    ports.iter().map(|raw| unsafe { port(raw) }).collect()
}

/// # Safety
/// The port's name is null or a string.
unsafe fn port(raw: &RawConsolePort) -> Result<PortConfig> {
    let passed = |fd: i32| (fd >= 0).then(|| duplicate(fd)).transpose();
    // SAFETY: passed on to the caller.
    let name = unsafe { optional(raw.name) }.map(|name| name.to_string_lossy().into_owned());
    Ok(PortConfig {
        name: name.unwrap_or_default(),
        console: raw.console != 0,
        input: passed(raw.input_fd)?,
        output: passed(raw.output_fd)?,
    })
}

/// # Safety
/// As [`device_of`].
unsafe fn console_of<'a>(device: *const Device) -> Result<&'a ConsoleControl> {
    // SAFETY: passed on to the caller.
    match unsafe { device_of(device) }?.control() {
        Control::Console(control) => Ok(control),
        _ => Err(Failure::refused("This device is no console")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_console_resize(device: *mut Device, columns: u16, rows: u16) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let outcome = unsafe { console_of(device) }?.resize(columns, rows);
        outcome.map_err(|error| {
            Failure::new("Console cannot be resized", error.raw_os_error().unwrap_or(libc::EIO))
        })
    })
}
