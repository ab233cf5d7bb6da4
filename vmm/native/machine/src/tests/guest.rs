//! A guest of a few dozen bytes: flat 32-bit code at 0x1000, without paging, and whatever devices the test brings
//! along. KVM that emulates kernel mode runs such code as well (but no `iret` there).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_segment};
use kvm_ioctls::VcpuFd;
use strato_virtio::GuestRamHandle;
use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::events::{MachineEvent, MachineEvents};
use crate::exit::Buses;
use crate::hub::Hub;
use crate::memory::{Backend, HugePages, MemoryConfig, Region, guest_ram};
use crate::vcpu::Vcpus;
use crate::vm::Vm;

/// Code of a guest, assembled: 32 bits, position independent. Labels are 2 to 9.
macro_rules! code {
    ($($line:literal),+ $(,)?) => {{
        let (begin, end): (*const u8, *const u8);
        // SAFETY: the guest's code is jumped over, and nothing but its two ends is taken.
        unsafe {
            std::arch::asm!(
                "lea {begin}, [rip + 70f]", "lea {end}, [rip + 71f]", "jmp 71f", ".code32", "70:",
                $($line),+,
                ".code64", "71:", begin = out(reg) begin, end = out(reg) end, options(nomem, nostack),
            )
        };
        // SAFETY: both are ends of the same piece of this program's text.
        unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
    }};
}
pub(crate) use code;

/// Where code begins; the stacks grow down from there.
pub(crate) const CODE: u64 = 0x1000;
/// Where the handler of an interrupt begins.
pub(crate) const HANDLER: u64 = 0x1800;
/// A word for the guest to change.
pub(crate) const WORD: u64 = 0x3000;
/// Addresses without RAM.
pub(crate) const DEVICE: u64 = 0xc000_0000;
const GDT: u64 = 0x500;
const IDT: u64 = 0x600;
const VECTORS: u16 = 64;
/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const RAM_BYTES: u64 = 4 << 20;

/// /dev/kvm, or a word about why not. Where it cannot be opened there is nothing to be tested.
pub(crate) fn kvm() -> Option<OwnedFd> {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(file.into()),
        Err(error) => {
            eprintln!("Skipped: /dev/kvm cannot be opened: {error}");
            None
        }
    }
}

/// Hears of the machine's events.
pub(crate) struct Ear(Sender<MachineEvent>);

impl Ear {
    pub(crate) fn new() -> (Arc<Self>, Receiver<MachineEvent>) {
        let (sent, heard) = channel();
        (Arc::new(Self(sent)), heard)
    }
}

impl MachineEvents for Ear {
    fn happened(&self, event: MachineEvent) {
        // The test may be over.
        let _ = self.0.send(event);
    }
}

/// One access of the guest: address from the device's first, and the bytes written or how many were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

/// Remembers accesses; reads give 0xa0 and up.
pub(crate) struct Probe {
    sent: Sender<Access>,
    heard: Mutex<Receiver<Access>>,
}

impl Probe {
    pub(crate) fn new() -> Arc<Self> {
        let (sent, heard) = channel();
        Arc::new(Self { sent, heard: Mutex::new(heard) })
    }

    fn heard(&self) -> MutexGuard<'_, Receiver<Access>> {
        self.heard.lock().unwrap()
    }

    pub(crate) fn next(&self) -> Access {
        self.heard().recv_timeout(PATIENCE).expect("an access of the guest")
    }

    /// Waits for a write and returns its bytes.
    pub(crate) fn next_write(&self) -> Vec<u8> {
        match self.next() {
            Access::Write(_, data) => data,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn try_next(&self) -> Option<Access> {
        self.heard().try_recv().ok()
    }
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(0xa0..) {
            *byte = value;
        }
        self.sent.send(Access::Read(offset, data.len())).unwrap();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.sent.send(Access::Write(offset, data.to_vec())).unwrap();
    }
}

/// Registers of a vCPU at [`CODE`]: protected mode and flat segments. Without handlers the interrupt table is empty.
fn enter(fd: &VcpuFd, index: u64, handled: bool) {
    let mut special = fd.get_sregs().unwrap();
    // Limits, types and flags as a boot loader's (IA-32 SDM, volume 3, "Segment Descriptors").
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = flat(0x08, 11);
    for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *segment = flat(0x10, 3);
    }
    special.cr0 |= 1;
    (special.gdt.base, special.gdt.limit) = (GDT, 3 * 8 - 1);
    (special.idt.base, special.idt.limit) = (IDT, if handled { VECTORS * 8 - 1 } else { 0 });
    special.cr4 |= 1 << 9; // OSFXSR: instructions with 16 bytes
    fd.set_sregs(&special).unwrap();
    let mut registers = fd.get_regs().unwrap();
    (registers.rip, registers.rsp, registers.rflags) = (CODE, CODE - 256 * index, 2);
    registers.rsi = index;
    fd.set_regs(&registers).unwrap();
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
}

/// A VM before its vCPUs.
pub(crate) struct Plan {
    pub(crate) vm: Vm,
    pub(crate) ram: GuestRamHandle,
    pub(crate) buses: Buses,
    pub(crate) hub: Arc<Hub>,
    handled: bool,
    heard: Receiver<MachineEvent>,
}

impl Plan {
    /// A VM with code at [`CODE`] and RAM of the kind; None where there is no KVM.
    pub(crate) fn with_memory(code: &[u8], config: MemoryConfig) -> Option<Self> {
        let mut vm = Vm::new(kvm()?).unwrap();
        let ram = guest_ram(config).unwrap();
        ram.write_slice(code, GuestAddress(CODE)).unwrap();
        for (at, descriptor) in (GDT..).step_by(8).zip([0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]) {
            ram.write_obj(descriptor, GuestAddress(at)).unwrap();
        }
        vm.add_ram(Arc::clone(&ram)).unwrap();
        let (ear, heard) = Ear::new();
        let mut buses = Buses::default();
        vm.interrupts().insert(&mut buses.memory).unwrap();
        Some(Self { vm, ram, buses, hub: Arc::new(Hub::new(ear)), handled: false, heard })
    }

    /// Puts `code` at [`HANDLER`], where `vector` leads through an interrupt gate.
    pub(crate) fn handler(mut self, vector: u64, code: &[u8]) -> Self {
        self.ram.write_slice(code, GuestAddress(HANDLER)).unwrap();
        let gate = HANDLER & 0xffff | 0x08 << 16 | 0x8e00 << 32;
        self.ram.write_obj(gate, GuestAddress(IDT + 8 * vector)).unwrap();
        self.handled = true;
        self
    }

    pub(crate) fn new(code: &[u8]) -> Option<Self> {
        Self::with_memory(code, anonymous())
    }

    pub(crate) fn port(mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Self {
        self.buses.ports.insert(base, len, device).unwrap();
        self
    }

    pub(crate) fn memory(mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Self {
        self.buses.memory.insert(base, len, device).unwrap();
        self
    }

    /// Starts `count` vCPUs, parked; each has its index in ESI and a stack of its own.
    pub(crate) fn start(self, count: u32) -> Guest {
        let fds = self.vm.create_vcpus(count).unwrap();
        fds.iter().zip(0..).for_each(|(fd, index)| enter(fd, index, self.handled));
        let Self { vm, ram, buses, hub, heard, handled: _ } = self;
        let vcpus = Vcpus::start(&vm, fds, &hub, &Arc::new(buses)).unwrap();
        Guest { vcpus, hub, heard, vm, ram }
    }

    /// Starts one vCPU and lets it go.
    pub(crate) fn run(self) -> Guest {
        let guest = self.start(1);
        guest.vcpus.release().unwrap();
        guest
    }
}

pub(crate) fn anonymous() -> MemoryConfig {
    MemoryConfig {
        backend: Backend::Anonymous,
        regions: vec![Region { guest_addr: 0, bytes: RAM_BYTES }],
        huge_pages: HugePages::Advised,
        prealloc: false,
    }
}

/// A VM with its vCPUs.
pub(crate) struct Guest {
    pub(crate) vcpus: Vcpus,
    pub(crate) hub: Arc<Hub>,
    heard: Receiver<MachineEvent>,
    pub(crate) vm: Vm,
    pub(crate) ram: GuestRamHandle,
}

impl Guest {
    pub(crate) fn event(&self) -> MachineEvent {
        self.heard.recv_timeout(PATIENCE).expect("an event of the machine")
    }

    pub(crate) fn no_event(&self) -> bool {
        self.heard.try_recv().is_err()
    }

    pub(crate) fn park(&self) -> bool {
        self.vcpus.park(Some(Instant::now() + PATIENCE))
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.vcpus.counters().iter().find(|(known, _)| *known == name).unwrap().1
    }

    pub(crate) fn word(&self, addr: u64) -> u32 {
        self.ram.read_obj(GuestAddress(addr)).unwrap()
    }

    /// Waits until a word of RAM is no longer `former`.
    pub(crate) fn changed(&self, addr: u64, former: u32) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let word = self.word(addr);
            if word != former {
                return word;
            }
            assert!(Instant::now() < deadline, "the word at {addr:#x} stays {former:#x}");
            std::thread::yield_now();
        }
    }
}
