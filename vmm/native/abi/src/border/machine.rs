//! The machine on KVM: raw structs become its own configuration, its events go into the ring.

use std::ffi::c_char;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use strato_machine::arch::{Boot, EntryChoice};
use strato_machine::events::{MachineEvent, MachineEvents};
use strato_machine::machine::{Machine, MachineConfig, PlatformConfig, SerialConfig};
use strato_machine::memory::{Backend, HugePages, MemoryConfig, Region};
use strato_machine::probe::{Verdict, probe};
use strato_machine::slot::SlotConfig;
use strato_plumbing::border::{check_size, null, required, store};
use strato_plumbing::{Failure, Result};

use super::{Events, RawMetric, border, device_of, duplicate, events_of, store_metrics};
use crate::device::Device;
use crate::events::{EventKind, EventRing};

/// More regions than any plan has.
const MAX_REGIONS: u32 = 64;

/// `strato_vmm_machine`.
pub struct MachineHandle(Machine);

/// Where a machine's events go.
struct Reporter {
    ring: Arc<EventRing>,
    tag: u64,
}

impl MachineEvents for Reporter {
    fn happened(&self, event: MachineEvent) {
        let (kind, text) = match &event {
            MachineEvent::Reset => (EventKind::GuestReset, "Guest asked for a reset"),
            MachineEvent::Shutdown => (EventKind::GuestShutdown, "Guest has switched itself off"),
            MachineEvent::Panicked => (EventKind::GuestPanicked, "Guest's kernel has panicked"),
            MachineEvent::CrashLoaded => (EventKind::CrashLoaded, "Guest's crash kernel takes over"),
            MachineEvent::TripleFault => (EventKind::TripleFault, "A vCPU met a triple fault"),
            MachineEvent::VcpuFailed(text) => (EventKind::VcpuFailed, text.as_str()),
            MachineEvent::Bug(text) => (EventKind::Panicked, text.as_str()),
        };
        self.ring.push(self.tag, kind, text);
    }
}

/// # Safety
/// `machine` is null or came from strato_vmm_machine_create and has not been destroyed.
unsafe fn machine_of<'a>(machine: *const MachineHandle) -> Result<&'a Machine> {
    // SAFETY: passed on to the caller.
    unsafe { machine.as_ref() }.map(|handle| &handle.0).ok_or_else(|| null("machine"))
}

fn unknown(what: &str, number: u32) -> Failure {
    Failure::refused(format!("{what} {number} is unknown"))
}

fn flag(what: &str, number: u32) -> Result<bool> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::refused(format!("{what} is 0 or 1, not {other}"))),
    }
}

fn reserved(number: u32) -> Result<()> {
    match number {
        0 => Ok(()),
        other => Err(Failure::refused(format!("A reserved field is {other}, not 0"))),
    }
}

/// A descriptor that may be left out.
fn optional_file(fd: i32) -> Result<Option<File>> {
    (fd >= 0).then(|| duplicate(fd).map(File::from)).transpose()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_probe(
    kvm_fd: i32,
    text: *mut c_char,
    capacity: usize,
    ret: *mut u32,
) -> i32 {
    border(|| {
        if text.is_null() || capacity == 0 {
            return Err(null("text"));
        }
        let (usable, words) = match probe(duplicate(kvm_fd)?) {
            Verdict::Usable(words) => (1, words),
            Verdict::Unusable(words) => (0, words),
        };
        let bytes = words.as_bytes();
        let count = bytes.len().min(capacity - 1);
        // SAFETY: the header's rule for buffers, and count < capacity.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, count) };
        // SAFETY: as above.
        unsafe { text.add(count).write(0) };
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, usable) }
    })
}

/// `strato_vmm_machine_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawMachineConfig {
    pub(super) size: u32,
    pub(super) kvm_fd: i32,
    pub(super) num_cpus: u32,
    pub(super) threads_per_core: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_create(
    events: *mut Events,
    tag: u64,
    name: *const c_char,
    config: *const RawMachineConfig,
    ret: *mut *mut MachineHandle,
) -> i32 {
    border(|| {
        if ret.is_null() {
            return Err(null("ret"));
        }
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawMachineConfig>(raw.size.into(), "strato_vmm_machine_config")?;
        // SAFETY: the header's rules for handles and strings.
        let (ring, name) = unsafe { (Arc::clone(&events_of(events)?.0), required(name, "name")?) };
        let config = MachineConfig {
            name: name.to_string_lossy().into_owned(),
            num_cpus: raw.num_cpus,
            threads_per_core: raw.threads_per_core,
        };
        let machine = Machine::new(duplicate(raw.kvm_fd)?, config, Arc::new(Reporter { ring, tag }))?;
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, Box::into_raw(Box::new(MachineHandle(machine)))) }
    })
}

/// `strato_vmm_memory_region`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawMemoryRegion {
    guest_addr: u64,
    bytes: u64,
}

/// `strato_vmm_memory_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawMemoryConfig {
    size: u32,
    backend: u32,
    fd: i32,
    num_regions: u32,
    regions: *const RawMemoryRegion,
    huge_pages: u32,
    prealloc: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_add_memory(
    machine: *mut MachineHandle,
    config: *const RawMemoryConfig,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawMemoryConfig>(raw.size.into(), "strato_vmm_memory_config")?;
        if raw.regions.is_null() || raw.num_regions > MAX_REGIONS {
            return Err(Failure::refused(format!("RAM has one to {MAX_REGIONS} regions")));
        }
        // SAFETY: the header's rule for this array.
        let regions = unsafe { std::slice::from_raw_parts(raw.regions, raw.num_regions as usize) };
        let config = MemoryConfig {
            backend: match raw.backend {
                0 => Backend::Anonymous,
                1 => Backend::Memfd,
                2 => Backend::File(duplicate(raw.fd)?.into()),
                other => return Err(unknown("Memory backend", other)),
            },
            regions: regions.iter().map(|r| Region { guest_addr: r.guest_addr, bytes: r.bytes }).collect(),
            huge_pages: match raw.huge_pages {
                0 => HugePages::Advised,
                1 => HugePages::TwoMiB,
                other => return Err(unknown("Kind of huge pages", other)),
            },
            prealloc: flag("prealloc", raw.prealloc)?,
        };
        // SAFETY: the header's rule for handles.
        unsafe { machine_of(machine) }?.add_memory(config)
    })
}

/// `strato_vmm_platform_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawPlatformConfig {
    size: u32,
    ged_gsi: u32,
    pvpanic_port: u16,
    power_port: u16,
    serial_port: u16,
    serial_gsi: u16,
    serial_fd: i32,
    reserved: u32,
    tables_addr: u64,
    generation_addr: u64,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_add_platform(
    machine: *mut MachineHandle,
    config: *const RawPlatformConfig,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawPlatformConfig>(raw.size.into(), "strato_vmm_platform_config")?;
        reserved(raw.reserved)?;
        let serial = match raw.serial_port {
            0 => None,
            port => {
                Some(SerialConfig { port, gsi: raw.serial_gsi.into(), output: optional_file(raw.serial_fd)? })
            }
        };
        let config = PlatformConfig {
            ged_gsi: raw.ged_gsi,
            pvpanic_port: raw.pvpanic_port,
            power_port: raw.power_port,
            serial,
            tables_addr: raw.tables_addr,
            generation_addr: raw.generation_addr,
        };
        // SAFETY: the header's rule for handles.
        unsafe { machine_of(machine) }?.add_platform(config)
    })
}

/// `strato_vmm_slot_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawSlotConfig {
    size: u32,
    index: u32,
    guest_addr: u64,
    gsi: u32,
    reserved: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_add_slot(
    machine: *mut MachineHandle,
    config: *const RawSlotConfig,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawSlotConfig>(raw.size.into(), "strato_vmm_slot_config")?;
        reserved(raw.reserved)?;
        let config = SlotConfig { index: raw.index, guest_addr: raw.guest_addr, gsi: raw.gsi };
        // SAFETY: the header's rule for handles.
        unsafe { machine_of(machine) }?.add_slot(config)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_plug(
    machine: *mut MachineHandle,
    slot: u32,
    device: *mut Device,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        let (machine, device) = unsafe { (machine_of(machine)?, device_of(device)?) };
        machine.plug(slot, device.plug()?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_unplug(machine: *mut MachineHandle, slot: u32) -> i32 {
    border(|| {
        // SAFETY: the header's rule for handles.
        drop(unsafe { machine_of(machine) }?.unplug(slot)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_add_cpus(machine: *mut MachineHandle) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { machine_of(machine) }?.add_cpus())
}

/// `strato_vmm_boot_config`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawBootConfig {
    size: u32,
    kernel_fd: i32,
    initrd_fd: i32,
    entry: u32,
    cmdline: *const c_char,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_load(
    machine: *mut MachineHandle,
    config: *const RawBootConfig,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers.
        let raw = unsafe { config.as_ref() }.ok_or_else(|| null("config"))?;
        check_size::<RawBootConfig>(raw.size.into(), "strato_vmm_boot_config")?;
        let boot = Boot {
            kernel: duplicate(raw.kernel_fd)?.into(),
            initrd: optional_file(raw.initrd_fd)?,
            entry: match raw.entry {
                0 => EntryChoice::Auto,
                1 => EntryChoice::Linux64,
                2 => EntryChoice::Pvh,
                other => return Err(unknown("Kernel entry", other)),
            },
            // SAFETY: the header's rule for strings.
            cmdline: unsafe { required(raw.cmdline, "cmdline") }?.to_owned(),
        };
        // SAFETY: the header's rule for handles.
        unsafe { machine_of(machine) }?.load(&boot)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_resume(machine: *mut MachineHandle) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { machine_of(machine) }?.resume())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_pause(machine: *mut MachineHandle, timeout_ms: u32) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { machine_of(machine) }?.pause(Duration::from_millis(timeout_ms.into())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_reset(machine: *mut MachineHandle) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { machine_of(machine) }?.reset())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_power_button(machine: *mut MachineHandle) -> i32 {
    // SAFETY: the header's rule for handles.
    border(|| unsafe { machine_of(machine) }?.power_button())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_set_generation(
    machine: *mut MachineHandle,
    guid: *const u8,
) -> i32 {
    border(|| {
        // SAFETY: the header's rule for pointers; there are 16 bytes.
        let guid = unsafe { guid.cast::<[u8; 16]>().as_ref() }.ok_or_else(|| null("guid"))?;
        // SAFETY: the header's rule for handles.
        unsafe { machine_of(machine) }?.set_generation(guid)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_cpus(
    machine: *mut MachineHandle,
    thread_ids: *mut i32,
    capacity: usize,
    ret: *mut usize,
) -> i32 {
    border(|| {
        if thread_ids.is_null() || ret.is_null() {
            return Err(null("thread_ids or ret"));
        }
        // SAFETY: the header's rule for handles.
        let threads = unsafe { machine_of(machine) }?.cpus();
        for (index, thread) in threads.iter().take(capacity).enumerate() {
            // SAFETY: `thread_ids` has room for `capacity` numbers.
            unsafe { thread_ids.add(index).write(*thread) };
        }
        // SAFETY: the header's rule for ret.
        unsafe { store(ret, threads.len()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_metrics(
    machine: *mut MachineHandle,
    buffer: *mut RawMetric,
    capacity: usize,
    ret: *mut usize,
) -> i32 {
    // SAFETY: the header's rules.
    border(|| unsafe { store_metrics(machine_of(machine)?.metrics(), buffer, capacity, ret) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn strato_vmm_machine_destroy(machine: *mut MachineHandle) {
    border(|| {
        if !machine.is_null() {
            // SAFETY: it came from Box::into_raw in machine_create and is destroyed once (header).
            drop(unsafe { Box::from_raw(machine) });
        }
        Ok(())
    });
}
