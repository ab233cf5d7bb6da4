//! Two processors of a guest on real KVM: registers, a pause, and the end that a vCPU comes to which KVM cannot run.

use std::arch::global_asm;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strato_devices::BucketConfig;
use strato_devices::rng::{Rng, RngConfig};
use strato_machine::arch::{Boot, EntryChoice};
use strato_machine::events::{MachineEvent, MachineEvents};
use strato_machine::machine::{Machine, MachineConfig, PlatformConfig};
use strato_machine::memory::{Backend, HugePages, MemoryConfig, Region};
use strato_machine::slot::SlotConfig;
use strato_virtio::Unobserved;
use strato_virtio_mmio::MmioDevice;

#[path = "../../../../machine/src/tests/tiny_kernel.rs"]
mod tiny_kernel;
use tiny_kernel::kernel;

const PATIENCE: Duration = Duration::from_secs(30);
const RAM_BYTES: u64 = 8 << 20;

// The kernel: 32 bits, position independent.
global_asm!(
    ".pushsection .rodata.guest, \"a\", @progbits",
    "guest_begin:",
    ".code32",
    // A line of the I/O APIC is taken into use.
    "mov ebx, 0xfec00000",
    "mov dword ptr [ebx], 0x1e",
    "mov dword ptr [ebx + 0x10], 0x30",
    // A driver takes the device up: status, features, one queue (virtio 1.2, 4.2.2).
    "mov ebx, 0xc0000000",
    "mov dword ptr [ebx + 0x70], 0x1",
    "mov dword ptr [ebx + 0x70], 0x3",
    "mov dword ptr [ebx + 0x24], 1",
    "mov dword ptr [ebx + 0x20], 1",
    "mov dword ptr [ebx + 0x70], 0xb",
    "mov dword ptr [ebx + 0x30], 0",
    "mov dword ptr [ebx + 0x38], 8",
    "mov dword ptr [ebx + 0x80], 0x200000",
    "mov dword ptr [ebx + 0x90], 0x201000",
    "mov dword ptr [ebx + 0xa0], 0x202000",
    "mov dword ptr [ebx + 0x44], 1",
    "mov dword ptr [ebx + 0x70], 0xf",
    // It says so by the panic device, and waits for the power button.
    "mov edx, 0x505",
    "mov al, 1",
    "out dx, al",
    "mov edx, 0x600",
    "2:",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    // The device is reset, and the next instruction is nowhere.
    "mov dword ptr [ebx + 0x70], 0",
    "mov eax, 0xd0000000",
    "jmp eax",
    ".code64",
    "guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static guest_begin: u8;
    static guest_end: u8;
}

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const guest_begin, &raw const guest_end);
    // SAFETY: both are ends of the same piece of this program's constants.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

struct Ear(Mutex<Sender<MachineEvent>>);

impl MachineEvents for Ear {
    fn happened(&self, event: MachineEvent) {
        // The work may be over.
        let _ = self.0.lock().unwrap().send(event);
    }
}

pub(crate) fn work() {
    let kvm: OwnedFd = File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm").into();
    let (said, heard) = channel();
    let config = MachineConfig { name: "guest".into(), num_cpus: 2, threads_per_core: 1 };
    let machine = Machine::new(kvm, config, Arc::new(Ear(Mutex::new(said)))).unwrap();
    let regions = vec![Region { guest_addr: 0, bytes: RAM_BYTES }];
    let (backend, huge_pages) = (Backend::Anonymous, HugePages::Advised);
    machine.add_memory(MemoryConfig { backend, regions, huge_pages, prealloc: false }).unwrap();
    let platform = PlatformConfig {
        ged_gsi: 5,
        pvpanic_port: 0x505,
        power_port: 0x600,
        serial: None,
        tables_addr: 0xe0000,
        generation_addr: 0xff000,
    };
    machine.add_platform(platform).unwrap();
    machine.add_slot(SlotConfig { index: 0, guest_addr: 0xc000_0000, gsi: 6 }).unwrap();
    let limit = BucketConfig { rate: 1 << 20, burst: 1 << 20 };
    let core = Box::new(Rng::new(RngConfig { limit }).unwrap());
    let device = Arc::new(MmioDevice::new("rng", core, Arc::new(Unobserved)).unwrap());
    machine.plug(0, device).unwrap();
    machine.add_cpus().unwrap();
    let boot =
        Boot { kernel: kernel(code()), initrd: None, entry: EntryChoice::Pvh, cmdline: CString::default() };
    machine.load(&boot).unwrap();
    machine.resume().unwrap();

    assert_eq!(heard.recv_timeout(PATIENCE), Ok(MachineEvent::Panicked));
    machine.pause(PATIENCE).unwrap();
    machine.resume().unwrap();
    machine.power_button().unwrap();
    let end = heard.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(&end, MachineEvent::VcpuFailed(text) if text.ends_with("at 0xd0000000")), "{end:?}");
}
