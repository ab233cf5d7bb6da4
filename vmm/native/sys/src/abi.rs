//! The C border. The only module that knows C pointers; see `include/strato_sys.h` for the contract.
//!
//! Every function catches panics, turns a [`Failure`] into a negative errno and keeps its text for the thread.
#![allow(
    missing_docs,
    clippy::missing_safety_doc,
    reason = "the header states once what holds for all of them"
)]

use std::ffi::{CStr, c_char, c_int, c_uint};

use strato_jail::landlock::{self, Use};
use strato_jail::{Otherwise, Role};
use strato_plumbing::border::{self, check_size, null, optional, required, store, store_fd};
use strato_plumbing::mounts::{self, MountAttr};
use strato_plumbing::parent::set_parent_death_signal;
use strato_plumbing::{Failure, Result};

use crate::network::TapConfig;
use crate::pump::{Event, EventKind, Pump, StreamConfig};
use crate::{network, process, tsc};

/// Changes with every incompatible change of the header.
const ABI_VERSION: u32 = 1;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => c"",
};

fn border(work: impl FnOnce() -> Result<()>) -> i32 {
    border::run("libstrato_sys.so", work)
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_abi_version() -> u32 {
    ABI_VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_version() -> *const c_char {
    VERSION.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_last_error(buffer: *mut c_char, capacity: usize) -> usize {
    // SAFETY: the header's rule for buffers.
    unsafe { border::last_error(buffer, capacity) }
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_unshare(flags: c_int) -> i32 {
    border(|| process::unshare(flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_setns(fd: c_int, nstype: c_int) -> i32 {
    border(|| process::setns(fd, nstype))
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_set_child_subreaper(enable: i32) -> i32 {
    border(|| process::set_child_subreaper(enable != 0))
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_set_parent_death_signal(signal: i32) -> i32 {
    border(|| set_parent_death_signal(signal))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_close_range(first: c_uint, last: c_uint, flags: c_uint) -> i32 {
    // SAFETY: the caller knows what it closes; that is the purpose of the call.
    border(|| unsafe { process::close_range(first, last, flags) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_set_process_name(name: *const c_char) -> i32 {
    // SAFETY: the header's rule for strings.
    border(|| process::set_process_name(unsafe { required(name, "name") }?))
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_forbid_gains() -> i32 {
    border(process::forbid_gains)
}

/// `strato_sys_path`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawPath {
    path: *const c_char,
    usage: u32,
    reserved: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_restrict_paths(
    paths: *const RawPath,
    count: usize,
    ret: *mut u32,
) -> i32 {
    border(|| {
        if paths.is_null() {
            return Err(null("paths"));
        }
        // SAFETY: the header's rule for pointers: `count` structs are readable.
        let raw = unsafe { std::slice::from_raw_parts(paths, count) };
        let mut allowed = Vec::with_capacity(count);
        for entry in raw {
            // SAFETY: the header's rule for strings.
            let path = unsafe { required(entry.path, "path") }?;
            allowed.push((path, path_use(entry.usage)?));
        }
        let version = landlock::restrict(&allowed)?;
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, version) }
    })
}

fn path_use(number: u32) -> Result<Use> {
    match number {
        0 => Ok(Use::Read),
        1 => Ok(Use::Folder),
        2 => Ok(Use::Tree),
        3 => Ok(Use::Device),
        4 => Ok(Use::DeviceReadonly),
        other => Err(Failure::refused(format!("Use {other} of a path is unknown"))),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_confine_control(forbidden: u32) -> i32 {
    border(|| {
        let otherwise = match forbidden {
            0 => Otherwise::Kill,
            1 => Otherwise::Log,
            other => return Err(Failure::refused(format!("Answer {other} to forbidden calls is unknown"))),
        };
        strato_jail::confine(Role::Control, otherwise)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn strato_sys_set_dumpable(enable: i32) -> i32 {
    border(|| process::set_dumpable(enable != 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_mount(
    source: *const c_char,
    target: *const c_char,
    fstype: *const c_char,
    flags: u64,
    data: *const c_char,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for strings.
        let (source, fstype, data) = unsafe { (optional(source), optional(fstype), optional(data)) };
        // SAFETY: as above.
        mounts::mount(source, unsafe { required(target, "target") }?, fstype, flags, data)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_umount(target: *const c_char, flags: i32) -> i32 {
    // SAFETY: the header's rule for strings.
    border(|| mounts::umount(unsafe { required(target, "target") }?, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_open_tree(
    dirfd: i32,
    path: *const c_char,
    flags: u32,
    ret: *mut i32,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for strings.
        let fd = mounts::open_tree(dirfd, unsafe { required(path, "path") }?, flags)?;
        // SAFETY: the header's rule for ret.
        unsafe { store_fd(ret, fd) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_move_mount(
    from_dirfd: i32,
    from_path: *const c_char,
    to_dirfd: i32,
    to_path: *const c_char,
    flags: u32,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for strings.
        let (from, to) = unsafe { (required(from_path, "from_path")?, required(to_path, "to_path")?) };
        mounts::move_mount((from_dirfd, from), (to_dirfd, to), flags)
    })
}

/// `strato_sys_mount_attr`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawMountAttr {
    size: u64,
    attr: MountAttr,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_mount_setattr(
    dirfd: i32,
    path: *const c_char,
    flags: u32,
    attr: *const RawMountAttr,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { attr.as_ref() }.ok_or_else(|| null("attr"))?;
        check_size::<RawMountAttr>(raw.size, "strato_sys_mount_attr")?;
        // SAFETY: the header's rule for strings.
        mounts::mount_setattr(dirfd, unsafe { required(path, "path") }?, flags, &raw.attr)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pivot_root(new_root: *const c_char, put_old: *const c_char) -> i32 {
    border(|| {
        // SAFETY: the header's rule for strings.
        let (new, old) = unsafe { (required(new_root, "new_root")?, required(put_old, "put_old")?) };
        mounts::pivot_root(new, old)
    })
}

/// `strato_sys_tap_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawTapConfig {
    size: u32,
    netns_fd: i32,
    name: *const c_char,
    mtu: u32,
    up: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_open_tap(config: *const RawTapConfig, ret: *mut i32) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawTapConfig>(raw.size.into(), "strato_sys_tap_config")?;
        // SAFETY: the header's rule for strings.
        let name = unsafe { required(raw.name, "name") }?.to_string_lossy();
        let mtu =
            i32::try_from(raw.mtu).map_err(|_| Failure::refused(format!("MTU {} is too large", raw.mtu)))?;
        let config = TapConfig {
            netns_fd: (raw.netns_fd != -1).then_some(raw.netns_fd),
            name: &name,
            mtu: (mtu != 0).then_some(mtu),
            up: raw.up != 0,
        };
        let tap = network::open_tap(&config)?;
        // SAFETY: the header's rule for ret.
        unsafe { store_fd(ret, tap) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_netlink_socket(netns_fd: i32, ret: *mut i32) -> i32 {
    border(|| {
        let socket = network::netlink_socket(netns_fd)?;
        // SAFETY: the header's rule for ret.
        unsafe { store_fd(ret, socket) }
    })
}

/// `strato_sys_tsc_reading`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawTscReading {
    size: u32,
    method: u32,
    khz: u64,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_tsc(method: u32, ret: *mut RawTscReading) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let place = unsafe { ret.as_mut() }.ok_or_else(|| null("ret"))?;
        check_size::<RawTscReading>(place.size.into(), "strato_sys_tsc_reading")?;
        let (method, khz) = match method {
            0 => tsc::best()?,
            1 => (tsc::Method::Kvm, tsc::read(tsc::Method::Kvm)?),
            2 => (tsc::Method::Perf, tsc::read(tsc::Method::Perf)?),
            3 => (tsc::Method::Measured, tsc::read(tsc::Method::Measured)?),
            other => return Err(Failure::refused(format!("TSC method {other} is unknown"))),
        };
        place.method = method as u32;
        place.khz = khz;
        Ok(())
    })
}

/// `strato_sys_pump_stream`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawPumpStream {
    size: u32,
    flags: u32,
    src_fd: i32,
    dst_fd: i32,
    tag: u64,
    limit: u64,
}

/// `strato_sys_pump_event`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawPumpEvent {
    tag: u64,
    handle: u64,
    bytes: u64,
    kind: u32,
    error: i32,
}

impl From<Event> for RawPumpEvent {
    fn from(event: Event) -> Self {
        let Event { tag, handle, bytes, kind, errno } = event;
        Self { tag, handle, bytes, kind: kind as u32, error: errno }
    }
}

/// `strato_sys_pump_stats_result`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawPumpStats {
    size: u32,
    state: u32,
    bytes_moved: u64,
    bytes_read: u64,
}

const KEEP_ON_DST_ERROR: u32 = 1;
const CLOSE_DST: u32 = 2;

/// # Safety
/// `pump` is null or came from strato_sys_pump_create and has not been destroyed.
unsafe fn pump_of<'a>(pump: *const Pump) -> Result<&'a Pump> {
    // SAFETY: passed on to the caller.
    unsafe { pump.as_ref() }.ok_or_else(|| null("pump"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_create(ret: *mut *mut Pump) -> i32 {
    border(|| {
        if ret.is_null() {
            return Err(null("ret"));
        }
        let pump = Box::new(Pump::start()?);
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, Box::into_raw(pump)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_destroy(pump: *mut Pump) {
    border(|| {
        if !pump.is_null() {
            // SAFETY: it came from Box::into_raw in pump_create and is destroyed once (header).
            drop(unsafe { Box::from_raw(pump) });
        }
        Ok(())
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_event_fd(pump: *mut Pump, ret: *mut i32) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let fd = unsafe { pump_of(pump) }?.event_fd();
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, fd) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_add(
    pump: *mut Pump,
    stream: *const RawPumpStream,
    ret: *mut u64,
) -> i32 {
    border(|| {
        if ret.is_null() {
            return Err(null("ret"));
        }
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { stream.as_ref() }.ok_or_else(|| null("stream"))?;
        check_size::<RawPumpStream>(raw.size.into(), "strato_sys_pump_stream")?;
        if raw.flags & !(KEEP_ON_DST_ERROR | CLOSE_DST) != 0 {
            return Err(Failure::refused(format!("Pump flags {:#x} are unknown", raw.flags)));
        }
        let config = StreamConfig {
            src_fd: raw.src_fd,
            dst_fd: raw.dst_fd,
            tag: raw.tag,
            limit: (raw.limit != u64::MAX).then_some(raw.limit),
            keep_on_dst_error: raw.flags & KEEP_ON_DST_ERROR != 0,
            close_dst: raw.flags & CLOSE_DST != 0,
        };
        // SAFETY: the header's rule for handles.
        let handle = unsafe { pump_of(pump) }?.add(&config)?;
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_set_limit(pump: *mut Pump, handle: u64, total: u64) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { pump_of(pump) }?.set_limit(handle, total))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_stats(pump: *mut Pump, handle: u64, ret: *mut RawPumpStats) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let place = unsafe { ret.as_mut() }.ok_or_else(|| null("ret"))?;
        check_size::<RawPumpStats>(place.size.into(), "strato_sys_pump_stats_result")?;
        // SAFETY: the header's rule for handles.
        let stats = unsafe { pump_of(pump) }?.stats(handle)?;
        place.state = stats.state as u32;
        place.bytes_moved = stats.bytes_moved;
        place.bytes_read = stats.bytes_read;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_remove(pump: *mut Pump, handle: u64) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { pump_of(pump) }?.remove(handle))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_sys_pump_events(
    pump: *mut Pump,
    buffer: *mut RawPumpEvent,
    capacity: usize,
    ret: *mut usize,
) -> i32 {
    border(|| {
        if buffer.is_null() || ret.is_null() {
            return Err(null("buffer or ret"));
        }
        // SAFETY: the header's rule for handles.
        let events = unsafe { pump_of(pump) }?.take_events(capacity)?;
        let count = events.len();
        for (index, event) in events.into_iter().enumerate() {
            // SAFETY: `buffer` has room for `capacity` events, and at most so many were taken.
            unsafe { buffer.add(index).write(event.into()) };
        }
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, count) }
    })
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
    strato_sys_sizeof_path => RawPath,
    strato_sys_sizeof_mount_attr => RawMountAttr,
    strato_sys_sizeof_tap_config => RawTapConfig,
    strato_sys_sizeof_tsc_reading => RawTscReading,
    strato_sys_sizeof_pump_stream => RawPumpStream,
    strato_sys_sizeof_pump_event => RawPumpEvent,
    strato_sys_sizeof_pump_stats_result => RawPumpStats,
}

// The numbers that the header gives to these enums.
const _: () = assert!(EventKind::SrcEof as u32 == 1 && EventKind::SrcError as u32 == 4);

#[cfg(test)]
mod tests;
