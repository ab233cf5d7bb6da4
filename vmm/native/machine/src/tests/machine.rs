//! The machine as its owner has it, with kernels of a few instructions.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use strato_virtio::record::RecordError;
use strato_virtio::{DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Progress, RING_FEATURES, Unobserved};
use strato_virtio_mmio::MmioDevice;
use strato_virtio_mmio::mock::MockDriver;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{Ear, PATIENCE, code, kvm};
use super::owned::{GENERATION, Owned, RINGS, WORD, boot, errno, memory, platform, rng, slot, wait};
use crate::events::MachineEvent;
use crate::machine::{Machine, MachineConfig, PlatformConfig, SerialConfig};
use crate::slot::SlotConfig;

#[test]
fn guest_ends_by_its_registers_and_boots_again_into_empty_ram() {
    // Resets, but switches itself off if it finds what it left in RAM.
    let code = code!(
        "cmp dword ptr [0x300000], 0",
        "jne 2f",
        "mov dword ptr [0x300000], 7",
        "mov edx, 0x603",
        "mov al, 0x42",
        "out dx, al",
        "2:",
        "mov edx, 0x601",
        "mov al, 0x34", // SLP_EN, type 5
        "out dx, al",
        "3:",
        "hlt",
        "jmp 3b",
    );
    let Some(owned) = Owned::running(code) else { return };
    for _ in 0..3 {
        assert_eq!(owned.event(), MachineEvent::Reset);
        assert_eq!(errno(owned.machine.resume()), libc::EINVAL);
        owned.machine.reset().unwrap();
        assert_eq!(errno(owned.machine.resume()), libc::EINVAL);
        owned.machine.load(&boot(code)).unwrap();
        assert_eq!(errno(owned.machine.load(&boot(code))), libc::EINVAL);
        owned.machine.resume().unwrap();
    }
    assert_eq!(owned.event(), MachineEvent::Reset);
    assert!(owned.heard.try_recv().is_err());
}

#[test]
fn panic_is_told_once_and_is_no_end() {
    let code = code!(
        "mov edx, 0x505",
        "mov al, 1",
        "out dx, al",
        "out dx, al",
        "mov edx, 0x601",
        "mov al, 0x34",
        "out dx, al",
        "2:",
        "hlt",
        "jmp 2b",
    );
    let Some(owned) = Owned::running(code) else { return };
    assert_eq!((owned.event(), owned.event()), (MachineEvent::Panicked, MachineEvent::Shutdown));
    owned.machine.reset().unwrap();
    owned.machine.load(&boot(code)).unwrap();
    owned.machine.resume().unwrap();
    assert_eq!((owned.event(), owned.event()), (MachineEvent::Panicked, MachineEvent::Shutdown));
}

#[test]
fn devices_come_and_go_while_the_guest_runs() {
    // Writes what it sees in slot 1: device ID in the word, magic and version behind it.
    let code = code!(
        "mov ebx, 0xc0001000",
        "2:",
        "mov eax, [ebx]",
        "mov [0x300004], eax",
        "mov eax, [ebx + 4]",
        "mov [0x300008], eax",
        "mov eax, [ebx + 8]",
        "inc eax",
        "mov [0x300000], eax",
        "jmp 2b",
    );
    let Some(owned) = Owned::running(code) else { return };
    let (device, other) = (rng("rng0"), rng("rng1"));
    owned.becomes(WORD, 1);
    for _ in 0..20 {
        owned.machine.plug(1, Arc::clone(&device)).unwrap();
        owned.becomes(WORD, 5);
        assert_eq!((owned.word(WORD + 4), owned.word(WORD + 8)), (0x7472_6976, 2));
        let failure = owned.machine.plug(1, Arc::clone(&other)).unwrap_err();
        assert_eq!(failure.to_string(), "Slot 1 has device rng0: Device or resource busy");
        drop(owned.machine.unplug(1).unwrap());
        owned.becomes(WORD, 1);
        assert_eq!((owned.word(WORD + 4), owned.word(WORD + 8)), (0x7472_6976, 2));
        assert_eq!(Arc::strong_count(&device), 1);
    }
    assert_eq!(errno(owned.machine.unplug(1)), libc::ENOENT);
    assert_eq!(errno(owned.machine.unplug(9)), libc::ENOENT);
    assert_eq!(errno(owned.machine.plug(9, device)), libc::ENOENT);
}

#[test]
fn device_that_the_guest_drives_is_not_taken_away_until_the_guest_has_ended() {
    let code = code!(
        "mov dword ptr [0xc0000070], 1", // ACKNOWLEDGE
        "mov dword ptr [0xc0000070], 3", // and DRIVER
        "mov dword ptr [0x300000], 1",
        "mov edx, 0x600",
        "2:",
        "in al, dx",
        "test al, 1",
        "jz 2b",
        "ud2",
    );
    let Some(owned) = Owned::built(1) else { return };
    owned.machine.plug(0, rng("rng0")).unwrap();
    owned.machine.load(&boot(code)).unwrap();
    owned.machine.resume().unwrap();
    owned.becomes(WORD, 1);
    let failure = owned.machine.unplug(0).map(|_| ()).unwrap_err();
    assert!(failure.to_string().starts_with("The guest has a driver for device rng0: unbind it first"));
    owned.machine.power_button().unwrap();
    assert_eq!(owned.event(), MachineEvent::TripleFault);
    owned.machine.unplug(0).unwrap();
}

#[test]
fn device_that_the_guest_only_knows_of_can_be_taken_away() {
    let code = code!(
        "mov dword ptr [0xc0000070], 1", // ACKNOWLEDGE, as Linux leaves it behind
        "mov dword ptr [0x300000], 1",
        "2:",
        "jmp 2b",
    );
    let Some(owned) = Owned::built(1) else { return };
    owned.machine.plug(0, rng("rng0")).unwrap();
    owned.machine.load(&boot(code)).unwrap();
    owned.machine.resume().unwrap();
    owned.becomes(WORD, 1);
    owned.machine.unplug(0).unwrap();
}

#[test]
fn paused_machine_has_paused_devices_and_a_reset_one_has_forgotten_its_driver() {
    let Some(owned) = Owned::running(code!("2:", "inc dword ptr [0x300000]", "jmp 2b")) else { return };
    let device = rng("rng0");
    owned.machine.plug(0, Arc::clone(&device)).unwrap();
    let driver = MockDriver::new(Arc::clone(&device));
    let features = driver.offered();
    assert!(driver.settle(features));
    let mut queues = driver.rings(&owned.ram(), RINGS, 8, features);
    driver.run(&queues);
    let queue = &mut queues[0];
    queue.offer(&[(RINGS + 0x8000, 64, true)]).unwrap();
    driver.kick(0);
    assert_eq!(wait(|| queue.take_used()).1, 64);

    owned.pause();
    let stopped = owned.word(WORD);
    queue.offer(&[(RINGS + 0x8000, 64, true)]).unwrap();
    driver.kick(0);
    // Answered by the device's thread, which looks at its queues before if it is awake.
    device.save().unwrap();
    assert_eq!(queue.take_used(), None);
    assert_eq!(owned.word(WORD), stopped);
    owned.machine.resume().unwrap();
    wait(|| queue.take_used());

    assert_eq!(errno(owned.machine.reset()), libc::EBUSY);
    owned.pause();
    owned.machine.reset().unwrap();
    assert_eq!(driver.status(), 0);
}

/// Comes to rest when the test says so.
struct Stubborn(DeviceInfo, Receiver<()>);

impl DeviceCore for Stubborn {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    fn process_queue(&mut self, _io: &mut DeviceIo<'_>, _queue: u16) -> Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }

    fn drain(&mut self, _io: &mut DeviceIo<'_>) {
        // An error: the test is over.
        let _ = self.1.recv_timeout(PATIENCE);
    }

    fn cancel(&mut self, _io: &mut DeviceIo<'_>) {}

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _record: &[u8]) -> Result<(), RecordError> {
        Ok(())
    }
}

#[test]
fn pause_that_a_device_holds_up_fails_and_the_machine_goes_on() {
    let Some(owned) = Owned::running(code!("2:", "inc dword ptr [0x300000]", "jmp 2b")) else { return };
    let (rested, rests) = channel();
    let info = DeviceInfo {
        device_type: 4,
        name: "stubborn",
        features: RING_FEATURES,
        queue_sizes: vec![8],
        config_len: 0,
    };
    // Once for the memory that it is given.
    rested.send(()).unwrap();
    let core = Box::new(Stubborn(info, rests));
    let device = Arc::new(MmioDevice::new("stubborn", core, Arc::new(Unobserved)).unwrap());
    owned.machine.plug(1, device).unwrap();
    owned.machine.plug(0, rng("rng0")).unwrap();
    let failure = owned.machine.pause(Duration::from_secs(2)).unwrap_err();
    assert_eq!(failure.errno(), libc::ETIMEDOUT);
    assert!(failure.to_string().starts_with("Device stubborn did not come to rest within 2s"));
    let former = owned.word(WORD);
    wait(|| (owned.word(WORD) != former).then_some(()));
    // The pause that failed, and the one that is to succeed.
    rested.send(()).unwrap();
    rested.send(()).unwrap();
    owned.pause();
    let stopped = owned.word(WORD);
    drop(rested);
    owned.machine.resume().unwrap();
    wait(|| (owned.word(WORD) != stopped).then_some(()));
}

#[test]
fn button_and_generation_reach_the_guest() {
    // Collects the events of the generic event device in a word.
    let code = code!("mov edx, 0x600", "2:", "in al, dx", "movzx eax, al", "or [0x300000], eax", "jmp 2b",);
    let Some(owned) = Owned::running(code) else { return };
    owned.machine.power_button().unwrap();
    owned.becomes(WORD, 1);
    let guid = *b"0123456789abcdef";
    owned.machine.set_generation(&guid).unwrap();
    owned.becomes(WORD, 3);
    assert_eq!(owned.ram().read_obj::<[u8; 16]>(GuestAddress(GENERATION)).unwrap(), guid);
}

#[test]
fn other_vcpus_wait_until_they_are_started() {
    let Some(owned) = Owned::built(3) else { return };
    owned.machine.load(&boot(code!("2:", "inc dword ptr [0x300000]", "jmp 2b"))).unwrap();
    owned.machine.resume().unwrap();
    for _ in 0..10 {
        let former = owned.word(WORD);
        wait(|| (owned.word(WORD) != former).then_some(()));
        owned.pause();
        owned.machine.resume().unwrap();
    }
    let cpus = owned.machine.cpus();
    assert_eq!(cpus.len(), 3);
    assert!(cpus.iter().all(|thread| std::path::Path::new(&format!("/proc/self/task/{thread}")).exists()));
    owned.pause();
    let metrics = owned.machine.metrics();
    let metric = |name: &str| metrics.iter().find(|(known, _)| *known == name).unwrap().1;
    // Three vCPUs, one of which was in the guest each time.
    assert!((11..=33).contains(&metric("exits_interrupted")), "{metrics:?}");
    assert_eq!((metric("exits_io_out"), metric("unknown_writes")), (0, 0));
}

#[test]
fn serial_port_is_there_when_it_is_asked_for() {
    let Some(kvm) = kvm() else { return };
    let owned = Owned::new(kvm, 1);
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let output = File::from(theirs.as_fd().try_clone_to_owned().unwrap());
    let serial = Some(SerialConfig { port: 0x3f8, gsi: 4, output: Some(output) });
    owned.machine.add_memory(memory()).unwrap();
    owned.machine.add_platform(PlatformConfig { serial, ..platform() }).unwrap();
    owned.machine.add_cpus().unwrap();
    let code = code!("mov edx, 0x3f8", "mov al, 0x41", "out dx, al", "2:", "hlt", "jmp 2b");
    owned.machine.load(&boot(code)).unwrap();
    owned.machine.resume().unwrap();
    let mut byte = [0];
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Read::read_exact(&mut ours, &mut byte).unwrap();
    assert_eq!(byte, *b"A");
    let metrics = owned.machine.metrics();
    for metric in [("serial_dropped", 0), ("coalesced_writes", 0)] {
        assert!(metrics.contains(&metric), "{metrics:?}");
    }
}

#[test]
fn machine_that_goes_takes_its_memory_with_it_and_leaves_the_devices() {
    let Some(owned) = Owned::running(code!("2:", "jmp 2b")) else { return };
    let device = rng("rng0");
    owned.machine.plug(0, Arc::clone(&device)).unwrap();
    let ram = Arc::downgrade(&owned.ram());
    drop(owned);
    assert!(ram.upgrade().is_none(), "somebody keeps guest memory");
    assert_eq!(Arc::strong_count(&device), 1);
    // It can be used again.
    let Some(owned) = Owned::built(1) else { return };
    owned.machine.plug(0, device).unwrap();
}

#[test]
fn steps_out_of_order_are_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let owned = Owned::new(kvm, 1);
    let machine = &owned.machine;
    let kernel = boot(&[0xf4]);
    machine.add_slot(slot(0)).unwrap();
    assert_eq!(errno(machine.add_slot(slot(0))), libc::EEXIST);
    assert_eq!(errno(machine.add_slot(SlotConfig { index: 1, ..slot(0) })), libc::EEXIST);
    for (outcome, words) in [
        (machine.plug(0, rng("rng0")), "no RAM yet"),
        (machine.add_cpus(), "no RAM or platform devices yet"),
        (machine.load(&kernel), "no vCPUs yet"),
        (machine.resume(), "no kernel yet"),
        (machine.power_button(), "no platform devices yet"),
        (machine.set_generation(&[0; 16]), "no platform devices yet"),
        (machine.take_dirty_log().map(|_| ()), "switch the dirty log on"),
    ] {
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(machine.cpus(), []);
    machine.pause(Duration::ZERO).unwrap();
    machine.add_memory(memory()).unwrap();
    assert_eq!(errno(machine.add_memory(memory())), libc::EEXIST);
    machine.add_platform(platform()).unwrap();
    assert_eq!(errno(machine.add_platform(platform())), libc::EEXIST);
    machine.add_cpus().unwrap();
    assert_eq!(errno(machine.add_cpus()), libc::EEXIST);
    assert_eq!(errno(machine.add_slot(slot(2))), libc::EEXIST);
}

#[test]
fn impossible_machines_are_refused() {
    let Some(kvm) = kvm() else { return };
    let make = |num_cpus| {
        let config = MachineConfig { name: "vm".into(), num_cpus, threads_per_core: 1 };
        Machine::new(kvm.try_clone().unwrap(), config, Ear::new().0).map(|_| ())
    };
    for num_cpus in [0, 1 << 20] {
        assert!(make(num_cpus).unwrap_err().to_string().contains("KVM gives 1 to"));
    }
    let config = MachineConfig { name: "vm".into(), num_cpus: 1, threads_per_core: 1 };
    let null = File::open("/dev/null").unwrap();
    assert_eq!(errno(Machine::new(null.into(), config, Ear::new().0)), libc::ENOTSUP);
}
