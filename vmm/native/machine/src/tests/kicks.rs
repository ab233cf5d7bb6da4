//! The signal that calls vCPUs out of the guest: whom it reaches, and what it does there.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::guest::{Guest, Plan, Probe, WORD, code};
use super::owned::{rng, wait};
use super::pause::Slow;
use crate::bus::BusDevice;
use crate::kick::{signal, this_thread};

/// Sends a thread the signal without a flag that says why.
fn stray(thread: libc::pid_t) {
    // SAFETY: plain numbers; the thread is one of this process.
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) }, 0);
}

/// Whether the signal is in one of a thread's sets, as the kernel tells them: SigBlk, SigPnd.
fn has(set: &str, thread: libc::pid_t) -> bool {
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':')).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> (signal() - 1) & 1 == 1
}

fn blocked(thread: libc::pid_t) -> bool {
    has("SigBlk", thread)
}

/// The thread of this process that shows as `name`.
fn named(name: &str) -> libc::pid_t {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let is_it = |path: &std::path::PathBuf| {
        // Those of other tests end meanwhile.
        std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let found = threads.map(|entry| entry.unwrap().path()).find(is_it).unwrap();
    found.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Every vCPU counts in a word of its own.
fn counter() -> &'static [u8] {
    code!("2:", "inc dword ptr [0x3000 + 4 * esi]", "jmp 2b")
}

fn counts(guest: &Guest) {
    guest.changed(WORD, guest.word(WORD));
}

#[test]
fn kicks_reach_vcpus_that_may_be_in_the_guest_and_no_other_thread() {
    let Some(plan) = Plan::new(counter()) else { return };
    let _device = rng("deaf");
    let guest = plan.start(2);
    let vcpus = guest.vcpus.threads();
    let inherited = std::thread::spawn(|| blocked(this_thread())).join().unwrap();
    assert!(blocked(this_thread()) && inherited, "whoever makes vCPUs, and what he starts then");
    assert!(blocked(named("deaf")), "a device");
    for _ in 0..3 {
        assert!(vcpus.iter().all(|thread| blocked(*thread)), "vCPUs that stand still");
        guest.vcpus.release().unwrap();
        wait(|| vcpus.iter().all(|thread| !blocked(*thread)).then_some(()));
        assert!(guest.park());
    }
}

#[test]
fn stray_kick_does_nothing_to_whoever_it_meets() {
    let code = code!("in al, 0x10", "mov [0x3000], al", "2:", "inc dword ptr [0x3000]", "jmp 2b");
    let slow = Arc::new(Slow::new());
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.port(0x10, 1, slow.clone()).start(1);
    let vcpu = guest.vcpus.threads()[0];
    // Whoever made the vCPU never hears of it.
    stray(this_thread());
    assert!(has("SigPnd", this_thread()));
    // At the gate.
    stray(vcpu);
    assert!(has("SigPnd", vcpu));
    guest.vcpus.release().unwrap();
    // In a device, and then on its way into the guest and in it.
    slow.entered();
    stray(vcpu);
    wait(|| (!has("SigPnd", vcpu)).then_some(()));
    assert_eq!(guest.word(WORD), 0);
    slow.leave();
    assert!(guest.changed(WORD, 0) >= 0x5a);
    for _ in 0..100 {
        stray(vcpu);
    }
    counts(&guest);
    assert!(guest.no_event());
    assert!(guest.park());
    guest.vcpus.release().unwrap();
    counts(&guest);
}

/// Takes locks and memory in every access.
struct Busy {
    kept: Mutex<Vec<u8>>,
    probe: Arc<Probe>,
}

impl BusDevice for Busy {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, offset: u64, data: &[u8]) {
        // Longer than the C library keeps at hand without a lock.
        for round in 1..2000 {
            *self.kept.lock().unwrap() = black_box(Vec::with_capacity(2000 + round));
        }
        self.probe.write(offset, data);
    }
}

#[test]
fn kicks_that_meet_a_vcpu_with_locks_and_in_the_allocator_deadlock_nothing() {
    let probe = Probe::new();
    let Some(plan) = Plan::new(code!("2:", "out 0x10, al", "jmp 2b")) else { return };
    let busy = Arc::new(Busy { kept: Mutex::default(), probe: probe.clone() });
    let guest = plan.port(0x10, 1, busy).run();
    let (vcpu, done) = (guest.vcpus.threads()[0], AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                stray(vcpu);
                // One at a time: how many can be queued is a limit for all of the user's processes.
                while has("SigPnd", vcpu) && !done.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
        });
        for _ in 0..500 {
            probe.next_write();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(guest.park());
    assert!(guest.no_event());
}
