use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;

use super::kinds::*;
use super::machine::*;
use super::*;

const HEADER: &str = include_str!("../../include/strato_vmm.h");
const SOURCES: [&str; 6] = [
    include_str!("../border.rs"),
    include_str!("kinds.rs"),
    include_str!("kinds/balloon.rs"),
    include_str!("kinds/console.rs"),
    include_str!("kinds/vsock.rs"),
    include_str!("machine.rs"),
];

/// Every `strato_vmm_x(` of a text, without comments.
fn functions(text: &str) -> BTreeSet<String> {
    let code: String =
        text.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, code)| code)).collect();
    code.match_indices("strato_vmm_")
        .map(|(at, _)| {
            code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        })
        .filter(|name| code.contains(&format!("{name}(")))
        .collect()
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let declared = functions(HEADER);
    let source = SOURCES.concat();
    let mut exported: BTreeSet<String> = source
        .split("extern \"C\" fn ")
        .skip(1)
        .filter_map(|rest| rest.split_once('(').map(|(name, _)| name.to_owned()))
        .filter(|name| name.starts_with("strato_vmm_"))
        .collect();
    let sizes = source.split("sizes! {").nth(1).unwrap().split('}').next().unwrap();
    exported.extend(
        sizes.lines().filter_map(|line| line.split_once(" => ").map(|(name, _)| name.trim().to_owned())),
    );
    assert_eq!(declared, exported);
    assert!(declared.len() > 12, "{declared:?}");
}

struct Owned {
    events: *mut Events,
    device: *mut Device,
}

impl Owned {
    fn rng() -> Self {
        let (mut events, mut device) = (null_mut(), null_mut());
        let config = RawRngConfig { size: size_of::<RawRngConfig>() as u64, rate: 1 << 20, burst: 1 << 20 };
        // SAFETY: the place is live.
        assert_eq!(unsafe { strato_vmm_events_create(&raw mut events) }, 0);
        // SAFETY: all pointers are live.
        let code =
            unsafe { strato_vmm_rng_create(events, 7, c"rng0".as_ptr(), &raw const config, &raw mut device) };
        assert_eq!(code, 0);
        Self { events, device }
    }

    fn serve(&self, socket: &UnixStream) -> i32 {
        // SAFETY: the handle is live.
        unsafe { strato_vmm_device_serve(self.device, socket.as_raw_fd()) }
    }

    /// Waits for the next event: (tag, kind, text).
    fn next(&self) -> (u64, u32, String) {
        let mut fd = -1;
        // SAFETY: handle and place are live.
        assert_eq!(unsafe { strato_vmm_events_fd(self.events, &raw mut fd) }, 0);
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
        let mut event = RawEvent { tag: 0, count: 0, kind: 0, text: [0; TEXT_LEN + 1] };
        let mut count = 0;
        // SAFETY: handle and places are live, the buffer has one place.
        assert_eq!(unsafe { strato_vmm_events_next(self.events, &raw mut event, 1, &raw mut count) }, 0);
        assert_eq!(count, 1);
        // SAFETY: the text ends with NUL.
        let text = unsafe { CStr::from_ptr(event.text.as_ptr()) };
        (event.tag, event.kind, text.to_str().unwrap().to_owned())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: both are destroyed once, the ring before its device on purpose.
        unsafe { strato_vmm_events_destroy(self.events) };
        // SAFETY: as above.
        unsafe { strato_vmm_device_destroy(self.device) };
    }
}

#[test]
fn a_device_serves_one_front_end_after_the_other_and_tells_when_one_goes() {
    let owned = Owned::rng();
    for _ in 0..2 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(owned.serve(&theirs), 0);
        assert_eq!(owned.serve(&theirs), -libc::EBUSY);
        drop((ours, theirs));
        assert_eq!(owned.next(), (7, EventKind::FrontEndGone as u32, "Front end has gone".to_owned()));
    }
}

#[test]
fn destruction_ends_a_conversation_that_is_going_on() {
    let owned = Owned::rng();
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert_eq!(owned.serve(&theirs), 0);
    drop(owned);
    drop(theirs);
    assert_eq!(std::io::Read::read(&mut &ours, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn counters_have_names_and_their_number_is_told() {
    let owned = Owned::rng();
    let mut metrics = [RawMetric { name: [0; NAME_LEN + 1], value: 9 }; 2];
    let mut count = 0;
    // SAFETY: handle, buffer and place are live.
    let code = unsafe { strato_vmm_device_metrics(owned.device, metrics.as_mut_ptr(), 2, &raw mut count) };
    assert_eq!(code, 0);
    assert!(count > 2);
    // SAFETY: the name ends with NUL.
    let name = unsafe { CStr::from_ptr(metrics[0].name.as_ptr()) };
    assert_eq!((name, metrics[0].value), (c"requests", 0));
}

#[test]
fn wrong_sizes_null_pointers_and_bad_values_are_refused() {
    let owned = Owned::rng();
    let mut device = null_mut();
    let mut config = RawRngConfig { size: 3, rate: 1, burst: 1 };
    let make = |config: *const RawRngConfig, ret| {
        // SAFETY: the ring and the strings are live, and null is checked.
        unsafe { strato_vmm_rng_create(owned.events, 0, c"x".as_ptr(), config, ret) }
    };
    assert_eq!(make(&raw const config, &raw mut device), -libc::EINVAL);
    config = RawRngConfig { size: size_of::<RawRngConfig>() as u64, rate: 0, burst: 1 };
    assert_eq!(make(&raw const config, &raw mut device), -libc::EINVAL);
    assert_eq!(make(std::ptr::null(), &raw mut device), -libc::EINVAL);
    assert_eq!(make(&raw const config, null_mut()), -libc::EINVAL);
    // SAFETY: the handle is live and -1 is no descriptor.
    assert_eq!(unsafe { strato_vmm_device_serve(owned.device, -1) }, -libc::EBADF);
    // SAFETY: null is checked by the functions.
    assert_eq!(unsafe { strato_vmm_device_serve(null_mut(), 0) }, -libc::EINVAL);
    // SAFETY: null is allowed.
    unsafe { strato_vmm_device_destroy(null_mut()) };
    // SAFETY: null is allowed.
    unsafe { strato_vmm_events_destroy(null_mut()) };
}

/// Makes a device with the ring of an entropy device, and destroys it; what the library said.
fn make(create: impl FnOnce(*mut Events, *mut *mut Device) -> i32, check: impl FnOnce(*mut Device)) -> i32 {
    let owned = Owned::rng();
    let mut device = null_mut();
    let code = create(owned.events, &raw mut device);
    if code == 0 {
        check(device);
        // SAFETY: the device was made just now, and is destroyed once.
        unsafe { strato_vmm_device_destroy(device) };
    }
    code
}

#[test]
fn consoles_are_made_of_ports_and_resized() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let port = |name: *const c_char, fd: i32| RawConsolePort {
        name,
        input_fd: fd,
        output_fd: fd,
        console: 1,
        reserved: 0,
    };
    let fd = theirs.as_raw_fd();
    let ports = [port(c"first".as_ptr(), fd), port(std::ptr::null(), -1)];
    let long = std::ffi::CString::new("n".repeat(65)).unwrap();
    let good = RawConsoleConfig {
        size: size_of::<RawConsoleConfig>() as u32,
        num_ports: 2,
        ports: ports.as_ptr(),
        columns: 80,
        rows: 25,
        reserved: 0,
    };
    let console = |config: RawConsoleConfig| {
        make(
            // SAFETY: the ring, the strings and the array are live for the call.
            |events, ret| unsafe {
                strato_vmm_console_create(events, 1, c"console0".as_ptr(), &raw const config, ret)
            },
            |device| {
                // SAFETY: the handle is live.
                assert_eq!(unsafe { strato_vmm_console_resize(device, 132, 50) }, 0);
            },
        )
    };
    assert_eq!(console(good), 0);
    assert_eq!(console(RawConsoleConfig { size: 1, ..good }), -libc::EINVAL);
    assert_eq!(console(RawConsoleConfig { num_ports: 0, ..good }), -libc::EINVAL);
    assert_eq!(console(RawConsoleConfig { num_ports: 32, ..good }), -libc::EINVAL);
    assert_eq!(console(RawConsoleConfig { num_ports: u32::MAX, ..good }), -libc::EINVAL);
    assert_eq!(console(RawConsoleConfig { ports: std::ptr::null(), ..good }), -libc::EINVAL);
    let named = [port(long.as_ptr(), fd)];
    assert_eq!(console(RawConsoleConfig { num_ports: 1, ports: named.as_ptr(), ..good }), -libc::EINVAL);
    let closed = [port(std::ptr::null(), i32::MAX)];
    assert_eq!(console(RawConsoleConfig { num_ports: 1, ports: closed.as_ptr(), ..good }), -libc::EBADF);
    let owned = Owned::rng();
    // SAFETY: the handle is live.
    assert_eq!(unsafe { strato_vmm_console_resize(owned.device, 1, 1) }, -libc::EINVAL);
    // The caller's descriptors are its own still.
    drop(theirs);
    assert_eq!(std::io::Read::read(&mut &ours, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn balloons_are_made_and_given_a_target() {
    let good = RawBalloonConfig {
        size: size_of::<RawBalloonConfig>() as u32,
        deflate_on_oom: 1,
        reporting: 1,
        stats_interval_s: 5,
    };
    let balloon = |config: RawBalloonConfig, check: fn(*mut Device)| {
        make(
            // SAFETY: the ring and the string are live for the call.
            |events, ret| unsafe {
                strato_vmm_balloon_create(events, 1, c"balloon0".as_ptr(), &raw const config, ret)
            },
            check,
        )
    };
    let created = balloon(good, |device| {
        // SAFETY: the handle is live.
        assert_eq!(unsafe { strato_vmm_balloon_set_target(device, (1 << 30) + 1) }, 0);
        // SAFETY: the handle is live.
        assert_eq!(unsafe { strato_vmm_balloon_set_target(device, 1 << 44) }, -libc::EINVAL);
        let mut info = RawBalloonInfo::from(strato_devices::balloon::BalloonInfo::default());
        info.actual_bytes = 1;
        info.stats = [0; 16];
        // SAFETY: handle and place are live.
        assert_eq!(unsafe { strato_vmm_balloon_get_info(device, &raw mut info) }, 0);
        assert_eq!((info.target_bytes, info.actual_bytes, info.updated_s), (1 << 30, 0, 0));
        assert_eq!(info.stats, [u64::MAX; 16]);
        // SAFETY: null is checked.
        assert_eq!(unsafe { strato_vmm_balloon_get_info(device, null_mut()) }, -libc::EINVAL);
    });
    assert_eq!(created, 0);
    assert_eq!(balloon(RawBalloonConfig { size: 2, ..good }, |_| ()), -libc::EINVAL);
    let owned = Owned::rng();
    // SAFETY: the handle is live.
    assert_eq!(unsafe { strato_vmm_balloon_set_target(owned.device, 0) }, -libc::EINVAL);
}

fn disk_file(bytes: u64) -> std::fs::File {
    // SAFETY: the name is a string.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    // SAFETY: memfd_create has returned it just now; nobody else owns it.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes).unwrap();
    file
}

fn disk_config(file: &std::fs::File, readonly: bool) -> RawBlockConfig {
    RawBlockConfig {
        size: size_of::<RawBlockConfig>() as u32,
        fd: file.as_raw_fd(),
        cache: 0,
        readonly: readonly.into(),
        engine: 2,
        num_queues: 1,
        serial: std::ptr::null(),
        limits: RawLimits { bandwidth: 0, bandwidth_burst: 0, operations: 0, operations_burst: 0 },
    }
}

fn with_disk(file: &std::fs::File, readonly: bool, check: impl FnOnce(*mut Device)) {
    let config = disk_config(file, readonly);
    // SAFETY: the ring and the string are live for the call.
    let create = |events, ret| unsafe {
        strato_vmm_block_create(events, 1, c"disk0".as_ptr(), &raw const config, ret)
    };
    assert_eq!(make(create, check), 0);
}

/// What growing gave, and what the library said.
fn grow(device: *mut Device, bytes: u64) -> (i32, u64, String) {
    let (mut seen, mut text) = (7, [0; 300]);
    // SAFETY: handle and place are live.
    let code = unsafe { strato_vmm_block_grow(device, bytes, &raw mut seen) };
    // SAFETY: the buffer is live and as large as is said.
    unsafe { strato_vmm_last_error(text.as_mut_ptr(), text.len()) };
    // SAFETY: the text ends with NUL.
    (code, seen, unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

#[test]
fn disks_grow_with_their_files_and_never_shrink() {
    let file = disk_file(8192);
    with_disk(&file, false, |device| {
        assert_eq!(grow(device, 1 << 20).0, 0);
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        // The host's administrator was first; the guest sees whole sectors.
        file.set_len((2 << 20) + 100).unwrap();
        let (code, seen, _) = grow(device, (2 << 20) + 100);
        assert_eq!((code, seen), (0, 2 << 20));

        let (code, seen, words) = grow(device, 1 << 20);
        assert_eq!((code, seen), (-libc::EINVAL, 7));
        assert!(words.contains("has 2097252 bytes, and disks in use do not shrink"), "{words}");
        let (code, _, words) = grow(device, u64::MAX);
        assert_eq!(code, -libc::EINVAL);
        assert!(words.contains("No file can have"), "{words}");
        // SAFETY: no pointers are passed.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW) }, 0);
        let (code, _, words) = grow(device, 4 << 20);
        assert_eq!(code, -libc::EPERM);
        assert!(words.contains("cannot grow"), "{words}");
        assert_eq!(file.metadata().unwrap().len(), (2 << 20) + 100);
        // SAFETY: the handle is live, and null is checked before anything grows.
        assert_eq!(unsafe { strato_vmm_block_grow(device, 4 << 20, null_mut()) }, -libc::EINVAL);
        assert_eq!(file.metadata().unwrap().len(), (2 << 20) + 100);
    });
}

#[test]
fn read_only_disks_are_grown_by_their_owner_alone() {
    let file = disk_file(8192);
    with_disk(&file, true, |device| {
        let (code, _, words) = grow(device, 1 << 20);
        assert_eq!((code, file.metadata().unwrap().len()), (-libc::EINVAL, 8192));
        assert!(words.contains("read-only and has 8192 bytes"), "{words}");
        file.set_len(1 << 20).unwrap();
        let (code, seen, _) = grow(device, 1 << 20);
        assert_eq!((code, seen), (0, 1 << 20));
    });
}

#[test]
fn calls_for_another_kind_of_device_are_refused() {
    let owned = Owned::rng();
    let mut seen = 7;
    // SAFETY: handle and place are live.
    assert_eq!(unsafe { strato_vmm_block_grow(owned.device, 1 << 20, &raw mut seen) }, -libc::EINVAL);
    // SAFETY: the handle is live.
    assert_eq!(unsafe { strato_vmm_vsock_reset_transport(owned.device) }, -libc::EINVAL);
    // SAFETY: null is checked.
    assert_eq!(unsafe { strato_vmm_vsock_reset_transport(null_mut()) }, -libc::EINVAL);
}

#[test]
fn machine_calls_refuse_null_pointers_and_wrong_sizes() {
    let owned = Owned::rng();
    let none = null_mut();
    // SAFETY: null is checked by each of the functions.
    let codes = unsafe {
        [
            strato_vmm_machine_add_memory(none, std::ptr::null()),
            strato_vmm_machine_add_platform(none, std::ptr::null()),
            strato_vmm_machine_add_slot(none, std::ptr::null()),
            strato_vmm_machine_plug(none, 0, owned.device),
            strato_vmm_machine_unplug(none, 0),
            strato_vmm_machine_add_cpus(none),
            strato_vmm_machine_load(none, std::ptr::null()),
            strato_vmm_machine_resume(none),
            strato_vmm_machine_pause(none, 1),
            strato_vmm_machine_reset(none),
            strato_vmm_machine_power_button(none),
            strato_vmm_machine_set_generation(none, std::ptr::null()),
            strato_vmm_machine_cpus(none, null_mut(), 0, null_mut()),
            strato_vmm_machine_metrics(none, null_mut(), 0, null_mut()),
            strato_vmm_probe(0, null_mut(), 0, null_mut()),
        ]
    };
    assert_eq!(codes, [-libc::EINVAL; 15]);
    // SAFETY: null is allowed.
    unsafe { strato_vmm_machine_destroy(none) };
    let mut machine = null_mut();
    let config = RawMachineConfig { size: 3, kvm_fd: -1, num_cpus: 1, threads_per_core: 1 };
    let create = |config: *const RawMachineConfig, ret| {
        // SAFETY: ring and strings are live, and null is checked.
        unsafe { strato_vmm_machine_create(owned.events, 1, c"vm".as_ptr(), config, ret) }
    };
    assert_eq!(create(&raw const config, &raw mut machine), -libc::EINVAL);
    let size = size_of::<RawMachineConfig>() as u32;
    let config = RawMachineConfig { size, ..config };
    assert_eq!(create(&raw const config, &raw mut machine), -libc::EBADF);
    assert_eq!(create(&raw const config, null_mut()), -libc::EINVAL);
    assert_eq!(create(std::ptr::null(), &raw mut machine), -libc::EINVAL);
    assert!(machine.is_null());
}
