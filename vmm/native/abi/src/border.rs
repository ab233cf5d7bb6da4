//! The C border. The only module that knows C pointers; see `include/strato_vmm.h` for the contract.
#![allow(
    missing_docs,
    clippy::missing_safety_doc,
    reason = "the header states once what holds for all of them"
)]

mod kinds;
mod machine;

use std::ffi::{CStr, c_char};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use strato_jail::Otherwise;
use strato_plumbing::border::{self, null, required, store};
use strato_plumbing::{Failure, Result};
use strato_virtio::thread;

use crate::device::{Device, Parts, Reporter};
use crate::events::{Event, EventKind, EventRing, TEXT_LEN, report_panics};

/// Changes with every incompatible change of the header.
const ABI_VERSION: u32 = 1;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => c"",
};

const NAME_LEN: usize = 31;

fn border(work: impl FnOnce() -> Result<()>) -> i32 {
    border::run("libstrato_vmm.so", work)
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_vmm_abi_version() -> u32 {
    ABI_VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_vmm_version() -> *const c_char {
    VERSION.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_last_error(buffer: *mut c_char, capacity: usize) -> usize {
    // SAFETY: the header's rule for buffers.
    unsafe { border::last_error(buffer, capacity) }
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_vmm_confine_threads(forbidden: u32) -> i32 {
    border(|| match forbidden {
        0 => thread::confine(Otherwise::Kill),
        1 => thread::confine(Otherwise::Log),
        other => Err(Failure::refused(format!("Answer {other} to forbidden calls is unknown"))),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_vmm_seal_threads() -> i32 {
    border(thread::seal)
}

/// `strato_vmm_events`: shared with the devices that write to it, so it may be destroyed in any order.
pub struct Events(Arc<EventRing>);

/// `strato_vmm_event`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawEvent {
    tag: u64,
    count: u64,
    kind: u32,
    text: [c_char; TEXT_LEN + 1],
}

impl From<Event> for RawEvent {
    fn from(event: Event) -> Self {
        let mut text = [0; TEXT_LEN + 1];
        for (place, byte) in text.iter_mut().take(TEXT_LEN).zip(event.text.bytes()) {
            *place = byte as c_char;
        }
        Self { tag: event.tag, count: event.count, kind: event.kind as u32, text }
    }
}

/// `strato_vmm_metric`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawMetric {
    name: [c_char; NAME_LEN + 1],
    value: u64,
}

/// # Safety
/// `events` is null or came from strato_vmm_events_create and has not been destroyed.
unsafe fn events_of<'a>(events: *const Events) -> Result<&'a Events> {
    // SAFETY: passed on to the caller.
    unsafe { events.as_ref() }.ok_or_else(|| null("events"))
}

/// # Safety
/// `device` is null or came from one of the constructors and has not been destroyed.
unsafe fn device_of<'a>(device: *const Device) -> Result<&'a Device> {
    // SAFETY: passed on to the caller.
    unsafe { device.as_ref() }.ok_or_else(|| null("device"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_events_create(ret: *mut *mut Events) -> i32 {
    border(|| {
        if ret.is_null() {
            return Err(null("ret"));
        }
        strato_virtio::allocator::settle();
        let ring = Arc::new(EventRing::new()?);
        report_panics(&ring);
        let events = Box::new(Events(ring));
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, Box::into_raw(events)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_events_destroy(events: *mut Events) {
    border(|| {
        if !events.is_null() {
            // SAFETY: it came from Box::into_raw in events_create and is destroyed once (header).
            drop(unsafe { Box::from_raw(events) });
        }
        Ok(())
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_events_fd(events: *mut Events, ret: *mut i32) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let fd = unsafe { events_of(events) }?.0.fd();
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, fd) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_events_next(
    events: *mut Events,
    buffer: *mut RawEvent,
    capacity: usize,
    ret: *mut usize,
) -> i32 {
    border(|| {
        if buffer.is_null() || ret.is_null() {
            return Err(null("buffer or ret"));
        }
        // SAFETY: the header's rule for handles.
        let taken = unsafe { events_of(events) }?.0.take(capacity);
        let count = taken.len();
        for (index, event) in taken.into_iter().enumerate() {
            // SAFETY: `buffer` has room for `capacity` events, and at most so many were taken.
            unsafe { buffer.add(index).write(event.into()) };
        }
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, count) }
    })
}

/// What is common to all constructors.
///
/// # Safety
/// As the header says of `events`, `name` and `ret`.
unsafe fn create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    ret: *mut *mut Device,
    parts: impl FnOnce() -> Result<Parts>,
) -> Result<()> {
    if ret.is_null() {
        return Err(null("ret"));
    }
    // SAFETY: passed on to the caller.
    let (ring, name) = unsafe { (Arc::clone(&events_of(events)?.0), required(name, "name")?) };
    let device = Device::new(&name.to_string_lossy(), parts()?, Reporter::new(ring, tag));
    // SAFETY: passed on to the caller.
    unsafe { store(ret, Box::into_raw(Box::new(device))) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_device_destroy(device: *mut Device) {
    border(|| {
        if !device.is_null() {
            // SAFETY: it came from Box::into_raw in a constructor and is destroyed once (header).
            drop(unsafe { Box::from_raw(device) });
        }
        Ok(())
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_device_serve(device: *mut Device, socket_fd: i32) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let device = unsafe { device_of(device) }?;
        device.serve(duplicate(socket_fd)?)
    })
}

/// Descriptors that go in stay the caller's.
fn duplicate(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Failure::new(format!("Descriptor {fd} is not open"), libc::EBADF));
    }
    // SAFETY: it is only duplicated; if it is not open, the kernel says so.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned().map_err(|error| {
        Failure::new("Cannot duplicate a descriptor", error.raw_os_error().unwrap_or(libc::EBADF))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_device_metrics(
    device: *mut Device,
    buffer: *mut RawMetric,
    capacity: usize,
    ret: *mut usize,
) -> i32 {
    border(|| {
        // SAFETY: the header's rules.
        unsafe { store_metrics(device_of(device)?.counters(), buffer, capacity, ret) }
    })
}

/// Writes as many counters as there is room for, and how many there are.
///
/// # Safety
/// As the header says of `buffer` and `ret`.
unsafe fn store_metrics(
    counters: Vec<(&'static str, u64)>,
    buffer: *mut RawMetric,
    capacity: usize,
    ret: *mut usize,
) -> Result<()> {
    if buffer.is_null() || ret.is_null() {
        return Err(null("buffer or ret"));
    }
    let count = counters.len();
    for (index, (counter, value)) in counters.into_iter().take(capacity).enumerate() {
        let mut name = [0; NAME_LEN + 1];
        for (place, byte) in name.iter_mut().take(NAME_LEN).zip(counter.bytes()) {
            *place = byte as c_char;
        }
        // SAFETY: `buffer` has room for `capacity` metrics.
        unsafe { buffer.add(index).write(RawMetric { name, value }) };
    }
    // SAFETY: passed on to the caller.
    unsafe { store(ret, count) }
}

/// One function per struct of the header: what Python compares with its own layout at import.
macro_rules! sizes {
    ($($name:ident => $kind:ty),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> usize {
            size_of::<$kind>()
        }
    )+};
}

sizes! {
    strato_vmm_sizeof_event => RawEvent,
    strato_vmm_sizeof_metric => RawMetric,
    strato_vmm_sizeof_rng_config => kinds::RawRngConfig,
    strato_vmm_sizeof_vsock_config => kinds::RawVsockConfig,
    strato_vmm_sizeof_limits => kinds::RawLimits,
    strato_vmm_sizeof_block_config => kinds::RawBlockConfig,
    strato_vmm_sizeof_fs_config => kinds::RawFsConfig,
    strato_vmm_sizeof_fs_share => kinds::RawFsShare,
    strato_vmm_sizeof_net_config => kinds::RawNetConfig,
    strato_vmm_sizeof_console_port => kinds::RawConsolePort,
    strato_vmm_sizeof_console_config => kinds::RawConsoleConfig,
    strato_vmm_sizeof_balloon_config => kinds::RawBalloonConfig,
    strato_vmm_sizeof_balloon_info => kinds::RawBalloonInfo,
    strato_vmm_sizeof_machine_config => machine::RawMachineConfig,
    strato_vmm_sizeof_memory_region => machine::RawMemoryRegion,
    strato_vmm_sizeof_memory_config => machine::RawMemoryConfig,
    strato_vmm_sizeof_platform_config => machine::RawPlatformConfig,
    strato_vmm_sizeof_slot_config => machine::RawSlotConfig,
    strato_vmm_sizeof_boot_config => machine::RawBootConfig,
}

// The numbers that the header gives to this enum.
const _: () = assert!(EventKind::NeedsReset as u32 == 1 && EventKind::Panicked as u32 == 7);
const _: () = assert!(EventKind::GuestReset as u32 == 16 && EventKind::CrashLoaded as u32 == 21);

#[cfg(test)]
mod tests;
