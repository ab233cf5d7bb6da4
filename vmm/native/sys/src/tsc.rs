//! The frequency of the time stamp counter, three ways.
//!
//! A guest under QEMU's TCG sees the host's counter, and boots reliably only if it is told the frequency.
//! What counts is agreement with the host kernel's clock, so the kernel is asked first; measuring is the last way.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use strato_plumbing::failure::{check, last_errno};
use strato_plumbing::{Failure, Result};

/// How a frequency was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Method {
    /// KVM_GET_TSC_KHZ.
    Kvm = 1,
    /// time_mult and time_shift of a perf event page.
    Perf = 2,
    /// rdtsc against CLOCK_MONOTONIC_RAW.
    Measured = 3,
}

/// In the order of preference.
const ALL: [Method; 3] = [Method::Kvm, Method::Perf, Method::Measured];

/// Reads the frequency in kHz with one method.
///
/// # Errors
/// When the host does not offer this method.
pub fn read(method: Method) -> Result<u64> {
    match method {
        Method::Kvm => kvm(),
        Method::Perf => perf(),
        Method::Measured => measure(),
    }
}

/// Reads the frequency with the first method that works.
///
/// # Errors
/// Those of the last method.
pub fn best() -> Result<(Method, u64)> {
    let mut outcome = Err(Failure::new("No way to learn the TSC frequency", libc::ENOSYS));
    for method in ALL {
        outcome = read(method).map(|khz| (method, khz));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// `KVM_CREATE_VM`, `KVM_CREATE_VCPU`, `KVM_GET_TSC_KHZ` of linux/kvm.h.
const KVM_CREATE_VM: libc::Ioctl = 0xae01;
const KVM_CREATE_VCPU: libc::Ioctl = 0xae41;
const KVM_GET_TSC_KHZ: libc::Ioctl = 0xaea3;

fn kvm() -> Result<u64> {
    // SAFETY: the path is a C string literal.
    let raw = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let kvm = own(raw, "Cannot open /dev/kvm")?;
    let vm = own(kvm_ioctl(&kvm, KVM_CREATE_VM), "Cannot make a KVM virtual machine")?;
    let vcpu = own(kvm_ioctl(&vm, KVM_CREATE_VCPU), "Cannot make a KVM vCPU")?;
    let khz = check(kvm_ioctl(&vcpu, KVM_GET_TSC_KHZ), || "Cannot read the TSC frequency from KVM".into())?;
    positive(khz as u64, "KVM")
}

fn kvm_ioctl(fd: &OwnedFd, number: libc::Ioctl) -> RawFd {
    // SAFETY: the three ioctls used here take an integer, which is 0.
    unsafe { libc::ioctl(fd.as_raw_fd(), number, 0) }
}

fn own(raw: RawFd, what: &str) -> Result<OwnedFd> {
    check(raw, || what.into())?;
    // SAFETY: the call returned this descriptor just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn positive(khz: u64, source: &str) -> Result<u64> {
    if khz == 0 {
        return Err(Failure::new(format!("{source} knows no TSC frequency"), libc::ENODATA));
    }
    Ok(khz)
}

/// The part of `struct perf_event_mmap_page` (linux/perf_event.h) up to time_mult.
#[repr(C)]
struct PerfPage {
    version: u32,
    compat_version: u32,
    lock: u32,
    index: u32,
    offset: i64,
    time_enabled: u64,
    time_running: u64,
    capabilities: u64,
    pmc_width: u16,
    time_shift: u16,
    time_mult: u32,
}

/// Bit 3 of `capabilities`: time_shift, time_mult and time_offset are valid.
const CAP_USER_TIME: u64 = 1 << 3;

/// The part of `struct perf_event_attr` that version 0 has (PERF_ATTR_SIZE_VER0 = 64 bytes).
#[repr(C)]
#[derive(Default)]
struct PerfAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

fn perf() -> Result<u64> {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const PERF_COUNT_SW_DUMMY: u64 = 9;
    const PERF_FLAG_FD_CLOEXEC: u64 = 8;
    // disabled, exclude_kernel, exclude_hv: allowed to everyone up to perf_event_paranoid 2.
    const FLAGS: u64 = 1 | 1 << 5 | 1 << 6;
    let attr = PerfAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfAttr>() as u32,
        config: PERF_COUNT_SW_DUMMY,
        flags: FLAGS,
        ..PerfAttr::default()
    };
    // SAFETY: `attr` is a perf_event_attr of the size that it states; the rest are integers.
    let raw = unsafe {
        libc::syscall(libc::SYS_perf_event_open, std::ptr::from_ref(&attr), 0, -1, -1, PERF_FLAG_FD_CLOEXEC)
    };
    let event = own(raw as RawFd, "Cannot open a perf event")?;
    let length = 4096;
    // SAFETY: a fresh shared read-only mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, event.as_raw_fd(), 0)
    };
    if page == libc::MAP_FAILED {
        return Err(Failure::new("Cannot map the perf event page", last_errno()));
    }
    // SAFETY: the mapping is a perf_event_mmap_page, larger than PerfPage, page-aligned; the kernel may write
    // to it at any time, hence the volatile copy.
    let facts = unsafe { std::ptr::read_volatile(page.cast::<PerfPage>()) };
    // SAFETY: unmaps exactly the mapping made above; `facts` is a copy.
    unsafe { libc::munmap(page, length) };
    if facts.capabilities & CAP_USER_TIME == 0 {
        return Err(Failure::new(
            "The kernel's own clock does not run on the TSC (perf cap_user_time)",
            libc::ENODATA,
        ));
    }
    khz_from_mult(facts.time_mult, facts.time_shift)
        .ok_or_else(|| Failure::new("The perf event page holds no TSC scale", libc::ENODATA))
}

/// ns = (tsc * mult) >> shift, so kHz = 10^6 * 2^shift / mult, rounded.
fn khz_from_mult(mult: u32, shift: u16) -> Option<u64> {
    if mult == 0 || shift > 64 {
        return None;
    }
    let scaled = (1_000_000u128 << shift) + u128::from(mult) / 2;
    u64::try_from(scaled / u128::from(mult)).ok()
}

/// Long enough that ~50 ns of doubt at either end is a few ppm.
const MEASURE_NS: u64 = 25_000_000;
const MEASURE_TRIES: u32 = 40;

#[cfg(target_arch = "x86_64")]
fn measure() -> Result<u64> {
    let start = sample()?;
    let nap = libc::timespec { tv_sec: 0, tv_nsec: MEASURE_NS as i64 };
    // SAFETY: `nap` is a live timespec; the remainder is not asked for. A signal only shortens the interval.
    unsafe { libc::nanosleep(&raw const nap, std::ptr::null_mut()) };
    let end = sample()?;
    let (ticks, ns) = (end.tsc.wrapping_sub(start.tsc), end.ns.saturating_sub(start.ns));
    if ns < MEASURE_NS / 2 {
        return Err(Failure::new("The measuring of the TSC was interrupted", libc::EINTR));
    }
    let khz = (u128::from(ticks) * 1_000_000 + u128::from(ns) / 2) / u128::from(ns);
    positive(u64::try_from(khz).unwrap_or(0), "The measurement")
}

#[cfg(not(target_arch = "x86_64"))]
fn measure() -> Result<u64> {
    Err(Failure::new("This machine has no TSC", libc::EOPNOTSUPP))
}

#[cfg(target_arch = "x86_64")]
struct Sample {
    tsc: u64,
    ns: u64,
}

/// Reads both clocks; of many tries, the one whose two counter reads lie closest together.
#[cfg(target_arch = "x86_64")]
fn sample() -> Result<Sample> {
    let mut best = Sample { tsc: 0, ns: 0 };
    let mut narrowest = u64::MAX;
    for _ in 0..MEASURE_TRIES {
        let before = rdtsc();
        let ns = monotonic_raw()?;
        let after = rdtsc();
        let width = after.wrapping_sub(before);
        if width < narrowest {
            narrowest = width;
            best = Sample { tsc: before.wrapping_add(width / 2), ns };
        }
    }
    Ok(best)
}

#[cfg(target_arch = "x86_64")]
fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has LFENCE (SSE2).
    unsafe { std::arch::x86_64::_mm_lfence() };
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it enabled for user space.
    let value = unsafe { std::arch::x86_64::_rdtsc() };
    // SAFETY: as above.
    unsafe { std::arch::x86_64::_mm_lfence() };
    value
}

#[cfg(target_arch = "x86_64")]
fn monotonic_raw() -> Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live timespec.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut now) };
    check(outcome, || "Cannot read CLOCK_MONOTONIC_RAW".into())?;
    Ok(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn khz_from_mult_inverts_the_kernels_scale() {
        // 2.5 GHz: 0.4 ns per tick; with shift 31 mult is 0.4 * 2^31.
        assert_eq!(khz_from_mult(858_993_459, 31), Some(2_500_000));
        assert_eq!(khz_from_mult(0, 31), None);
        assert_eq!(khz_from_mult(1, 65), None);
    }

    #[test]
    fn the_measured_value_agrees_with_the_kernels_where_it_tells_one() {
        let measured = measure().unwrap();
        assert!((100_000..20_000_000).contains(&measured), "{measured} kHz");
        for exact in [kvm(), perf()].into_iter().flatten() {
            // A loose bound: this test must hold on a busy machine.
            assert!(exact.abs_diff(measured) < exact / 2_000, "{exact} and {measured} kHz");
        }
    }
}
