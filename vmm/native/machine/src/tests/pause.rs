//! The gate: pauses, ends, many vCPUs.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Cap;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{DEVICE, Guest, PATIENCE, Plan, Probe, WORD, code};
use crate::bus::BusDevice;
use crate::events::{MachineEvent, MachineEvents};

/// Every vCPU counts in a word of its own.
fn counter() -> &'static [u8] {
    code!("2:", "inc dword ptr [0x3000 + 4 * esi]", "jmp 2b")
}

fn words(guest: &Guest, count: u64) -> Vec<u32> {
    (0..count).map(|index| guest.word(WORD + 4 * index)).collect()
}

#[test]
fn paused_guest_stands_still_and_goes_on() {
    let Some(plan) = Plan::new(counter()) else { return };
    let guest = plan.start(2);
    for _ in 0..20 {
        let former = words(&guest, 2);
        guest.vcpus.release().unwrap();
        for index in 0..2 {
            guest.changed(WORD + 4 * index, former[index as usize]);
        }
        assert!(guest.park());
        let stopped = words(&guest, 2);
        // A guest that ran would count within the first of these.
        for _ in 0..1000 {
            assert_eq!(words(&guest, 2), stopped);
            std::thread::yield_now();
        }
    }
    assert!(guest.counter("exits_interrupted") >= 40);
}

#[test]
fn pauses_are_short_whatever_the_guest_does() {
    let halted = code!("2:", "hlt", "jmp 2b");
    let exits = code!("2:", "in al, 0x10", "jmp 2b");
    for code in [counter(), halted, exits] {
        let Some(plan) = Plan::new(code) else { return };
        let guest = plan.start(2);
        let mut pauses = Vec::new();
        for _ in 0..50 {
            guest.vcpus.release().unwrap();
            while guest.hub.gate.parked() > 0 {
                std::thread::yield_now();
            }
            let asked = Instant::now();
            assert!(guest.park());
            pauses.push(asked.elapsed());
        }
        pauses.sort();
        eprintln!("Pauses of two vCPUs: median {:?}, longest {:?}", pauses[25], pauses[49]);
        // Nothing here waits for a clock; a thread may have to wait for a processor.
        assert!(pauses[25] < Duration::from_secs(1));
    }
}

#[test]
fn access_is_complete_when_its_vcpu_parks() {
    let code = code!("mov edx, 0x10", "in al, dx", "mov [0x3000], al", "2:", "jmp 2b");
    let device = Arc::new(Slow::new());
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.port(0x10, 1, device.clone()).run();
    device.entered();
    // The vCPU is in the device: a pause that will not wait gives up, and the guest goes on.
    assert!(!guest.vcpus.park(Some(Instant::now() + Duration::from_millis(20))));
    assert!(!guest.vcpus.park(Some(Instant::now())));
    let gate = std::thread::scope(|scope| {
        let vcpus = &guest.vcpus;
        let parked = scope.spawn(|| vcpus.park(Some(Instant::now() + PATIENCE)));
        // The gate is closed before the access ends, whose value KVM has yet to put into AL.
        while guest.hub.gate.is_open() {
            std::thread::yield_now();
        }
        device.leave();
        parked.join().unwrap()
    });
    assert!(gate);
    let mut registers = None;
    guest
        .vcpus
        .each(|_, fd| {
            registers = Some(fd.get_regs().unwrap());
            Ok(())
        })
        .unwrap();
    assert_eq!(registers.unwrap().rax as u8, 0x5a);
    guest.vcpus.release().unwrap();
    assert_eq!(guest.changed(WORD, 0), 0x5a);
}

/// A read of it takes as long as the test says, and gives 0x5a.
pub(super) struct Slow {
    entered: (Mutex<Sender<()>>, Mutex<Receiver<()>>),
    leaving: (Mutex<Sender<()>>, Mutex<Receiver<()>>),
}

impl Slow {
    pub(super) fn new() -> Self {
        let line = || {
            let (sender, receiver) = channel();
            (Mutex::new(sender), Mutex::new(receiver))
        };
        Self { entered: line(), leaving: line() }
    }

    pub(super) fn entered(&self) {
        self.entered.1.lock().unwrap().recv_timeout(PATIENCE).unwrap();
    }

    pub(super) fn leave(&self) {
        self.leaving.0.lock().unwrap().send(()).unwrap();
    }
}

impl BusDevice for Slow {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        self.entered.0.lock().unwrap().send(()).unwrap();
        self.leaving.1.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        data.fill(0x5a);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[test]
fn device_that_holds_one_vcpu_up_holds_up_no_other_one() {
    // The first one reads the slow device; the second one has an exit of every kind again and again.
    let code = code!(
        "mov ebx, 0xc0000000",
        "test esi, esi",
        "jnz 3f",
        "mov eax, [ebx]",
        "mov [0x3000], eax",
        "2:",
        "jmp 2b",
        "3:",
        "mov edi, 0xfec00000", // the I/O APIC
        "4:",
        "mov [ebx + 0x1000], eax",
        "mov eax, [ebx + 0x1000]",
        "mov eax, [ebx + 0x2000]", // nobody's
        "mov dword ptr [edi], 1",
        "mov eax, [edi + 0x10]",
        "out 0x10, al",
        "jmp 4b",
    );
    let (slow, memory, port) = (Arc::new(Slow::new()), Probe::new(), Probe::new());
    let Some(plan) = Plan::new(code) else { return };
    let plan = plan.memory(DEVICE, 4, slow.clone()).memory(DEVICE + 0x1000, 4, memory.clone());
    let guest = plan.port(0x10, 1, port.clone()).start(2);
    guest.vcpus.release().unwrap();
    slow.entered();
    // What was said before does not count.
    while memory.try_next().is_some() {}
    while port.try_next().is_some() {}
    for _ in 0..200 {
        memory.next();
        memory.next();
        port.next_write();
    }
    assert_eq!(guest.word(WORD), 0);
    slow.leave();
    assert_eq!(guest.changed(WORD, 0), 0x5a5a_5a5a);
}

/// A guest's clock (arch/x86/include/asm/pvclock-abi.h, `struct pvclock_vcpu_time_info`; the MSR is that of
/// Documentation/virt/kvm/x86/msr.rst): where it is, where its version and flags are in it, and their bit 1.
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const CLOCK: u64 = 0x3100;
const CLOCK_FLAGS: GuestAddress = GuestAddress(CLOCK + 29);
const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

#[test]
fn guest_is_told_by_its_clock_that_it_stood_still() {
    let Some(plan) = Plan::new(counter()) else { return };
    let guest = plan.start(1);
    let enabled = kvm_msr_entry { index: MSR_KVM_SYSTEM_TIME_NEW, data: CLOCK | 1, ..Default::default() };
    let mut set = 0;
    guest
        .vcpus
        .each(|_, fd| {
            set = fd.set_msrs(&Msrs::from_entries(&[enabled]).unwrap()).unwrap();
            Ok(())
        })
        .unwrap();
    if set == 0 || !guest.vm.kvm().check_extension(Cap::KvmclockCtrl) {
        eprintln!("Skipped: this KVM has no kvmclock that can be told of a pause");
        return;
    }
    let stopped = || guest.ram.read_obj::<u8>(CLOCK_FLAGS).unwrap() & PVCLOCK_GUEST_STOPPED != 0;
    // Before the first instruction of the guest nothing stood still.
    guest.vcpus.release().unwrap();
    guest.changed(CLOCK, 0);
    guest.changed(WORD, guest.word(WORD));
    assert!(!stopped());
    for _ in 0..3 {
        assert!(guest.park());
        guest.vcpus.release().unwrap();
        // KVM writes the page before the vCPU enters.
        guest.changed(WORD, guest.word(WORD));
        assert!(stopped());
        // As the guest's watchdog does when it has taken note (arch/x86/kernel/pvclock.c).
        guest.ram.write_obj(0u8, CLOCK_FLAGS).unwrap();
    }
}

/// What a register does that ends the guest.
struct Ender(Arc<dyn MachineEvents>);

impl BusDevice for Ender {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.happened(match data[0] {
            1 => MachineEvent::Reset,
            2 => MachineEvent::Shutdown,
            _ => MachineEvent::Panicked,
        });
    }
}

#[test]
fn guest_that_ends_is_heard_once_and_all_its_vcpus_park() {
    // The first panics, then asks for a reset again and again; the others count.
    let code = code!(
        "test esi, esi",
        "jnz 3f",
        "mov al, 3",
        "out 0x10, al",
        "out 0x10, al",
        "mov al, 1",
        "2:",
        "out 0x10, al",
        "jmp 2b",
        "3:",
        "inc dword ptr [0x3000 + 4 * esi]",
        "jmp 3b",
    );
    let Some(plan) = Plan::new(code) else { return };
    let ender = Arc::new(Ender(plan.hub.clone()));
    let guest = plan.port(0x10, 1, ender).start(3);
    guest.vcpus.release().unwrap();
    assert_eq!(guest.event(), MachineEvent::Panicked);
    assert_eq!(guest.event(), MachineEvent::Reset);
    assert!(guest.park());
    assert!(guest.no_event());
    let text = guest.vcpus.release().unwrap_err().to_string();
    assert_eq!(text, "Guest has come to an end (reset): reset the machine first");
    // Once it is forgotten, everything is heard again.
    guest.hub.forget();
    guest.vcpus.release().unwrap();
    assert_eq!(guest.event(), MachineEvent::Reset);
    assert!(guest.park());
}

#[test]
fn several_vcpus_exit_side_by_side_and_each_is_counted() {
    let code = code!(
        "mov ecx, 1000",
        "2:",
        "mov eax, esi",
        "out 0x10, al",
        "dec ecx",
        "jnz 2b",
        "3:",
        "hlt",
        "jmp 3b"
    );
    let said = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.port(0x10, 1, said.clone()).start(4);
    guest.vcpus.release().unwrap();
    let mut heard = [0; 4];
    for _ in 0..4000 {
        heard[usize::from(said.next_write()[0])] += 1;
    }
    assert_eq!(heard, [1000; 4]);
    assert!(guest.park());
    assert_eq!(guest.counter("exits_io_out"), 4000);
    let threads = guest.vcpus.threads();
    assert_eq!(threads.len(), 4);
    for (index, thread) in threads.iter().enumerate() {
        let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap();
        assert_eq!(name.trim(), format!("vcpu{index}"));
    }
}

#[test]
fn threads_of_vcpus_end_with_them_even_in_the_guest() {
    let Some(plan) = Plan::new(counter()) else { return };
    let guest = plan.start(2);
    guest.vcpus.release().unwrap();
    guest.changed(WORD, 0);
    let threads = guest.vcpus.threads();
    drop(guest);
    for thread in threads {
        assert!(!std::path::Path::new(&format!("/proc/self/task/{thread}")).exists());
    }
}
