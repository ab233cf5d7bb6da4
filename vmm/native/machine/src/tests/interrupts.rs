//! Interrupts into the guest and doorbells out of it.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use strato_virtio::mock::SeededRandom;

use super::guest::{Access, DEVICE, PATIENCE, Plan, Probe, code};
use crate::bus::BusDevice;

fn eventfd() -> EventFd {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap()
}

/// Waits for a signal, and returns how many there were.
fn signals(fd: &EventFd) -> u64 {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) }, 1);
    fd.read().unwrap()
}

/// Unmasks line 7 as vector 0x30, says so, and waits for interrupts.
fn listener() -> &'static [u8] {
    code!(
        "mov edi, 0xfee00000", // the local APIC: switched on
        "mov dword ptr [edi + 0xf0], 0x1ff",
        "mov ebx, 0xfec00000", // the I/O APIC
        "mov dword ptr [ebx], 0x1f",
        "mov dword ptr [ebx + 0x10], 0",
        "mov dword ptr [ebx], 0x1e",
        "mov dword ptr [ebx + 0x10], 0x30",
        "mov eax, [ebx + 0x10]",
        "out 0x10, eax",
        "2:",
        "sti",
        "hlt",
        "jmp 2b",
    )
}

/// Counts, says so, and waits for more without returning.
fn handler() -> &'static [u8] {
    code!(
        "inc dword ptr [0x3000]",
        "mov eax, [0x3000]",
        "mov esp, 0x1000",
        "mov dword ptr [edi + 0xb0], 0", // end of interrupt
        "out 0x10, eax",
        "2:",
        "sti",
        "hlt",
        "jmp 2b",
    )
}

#[test]
fn signal_of_an_eventfd_is_an_interrupt_in_the_guest() {
    let said = Probe::new();
    let Some(plan) = Plan::new(listener()) else { return };
    let plan = plan.handler(0x30, handler()).port(0x10, 4, said.clone());
    let line = eventfd();
    plan.vm.connect_interrupt(&line, 7).unwrap();
    let guest = plan.run();
    assert_eq!(said.next_write(), 0x30u32.to_le_bytes());
    for count in 1..=100u32 {
        line.write(1).unwrap();
        assert_eq!(said.next_write(), count.to_le_bytes());
    }
    guest.vm.disconnect_interrupt(&line, 7).unwrap();
    line.write(1).unwrap();
    assert!(guest.park());
    assert_eq!(said.try_next(), None);
}

#[test]
fn two_devices_on_one_line_are_both_heard() {
    let said = Probe::new();
    let Some(plan) = Plan::new(listener()) else { return };
    let plan = plan.handler(0x30, handler()).port(0x10, 4, said.clone());
    let (one, other) = (eventfd(), eventfd());
    plan.vm.connect_interrupt(&one, 7).unwrap();
    plan.vm.connect_interrupt(&other, 7).unwrap();
    let _guest = plan.run();
    said.next_write();
    for count in 1..=20u32 {
        if count % 2 == 0 { &one } else { &other }.write(1).unwrap();
        assert_eq!(said.next_write(), count.to_le_bytes());
    }
}

#[test]
fn masked_line_is_silent_and_lines_end_with_the_last() {
    let said = Probe::new();
    let code = code!("mov al, 1", "out 0x10, al", "2:", "sti", "hlt", "jmp 2b");
    let Some(plan) = Plan::new(code) else { return };
    let plan = plan.handler(0x30, handler()).port(0x10, 4, said.clone());
    let line = eventfd();
    plan.vm.connect_interrupt(&line, 7).unwrap();
    let failure = plan.vm.connect_interrupt(&line, 24).unwrap_err();
    assert_eq!(failure.to_string(), "Interrupt line 24 does not exist: the last one is 23");
    let guest = plan.run();
    assert_eq!(said.next_write(), [1]);
    line.write(1).unwrap();
    assert!(guest.park());
    assert_eq!(said.try_next(), None);
    assert_eq!(guest.word(super::guest::WORD), 0);
}

#[test]
fn io_apic_that_was_written_at_random_works_after_a_reset() {
    let said = Probe::new();
    let Some(plan) = Plan::new(listener()) else { return };
    let plan = plan.handler(0x30, handler()).port(0x10, 4, said.clone());
    let line = eventfd();
    plan.vm.connect_interrupt(&line, 7).unwrap();
    let mut random = SeededRandom::new(24);
    let mut data = [0; 8];
    for _ in 0..5000 {
        // Mostly the two registers, whole words, and entries of the table.
        let offset = if random.below(8) == 0 { random.below(0x1000) } else { random.below(2) * 0x10 };
        let len = if random.below(8) == 0 { 1 + random.below(8) as usize } else { 4 };
        random.fill(&mut data);
        if offset == 0 {
            data[0] &= 0x3f;
        }
        plan.vm.interrupts().write(offset, &data[..len]);
        plan.vm.interrupts().read(offset, &mut data[..len]);
        if random.below(64) == 0 {
            line.write(1).unwrap();
        }
    }
    plan.vm.interrupts().reset().unwrap();
    let guest = plan.run();
    assert_eq!(said.next_write(), 0x30u32.to_le_bytes());
    line.write(1).unwrap();
    assert_eq!(said.next_write(), 1u32.to_le_bytes());
    assert!(guest.no_event());
}

#[test]
fn doorbell_rings_for_its_value_and_others_are_exits() {
    let code = code!(
        "mov ebx, 0xc0000050",
        "mov dword ptr [ebx], 0",
        "mov dword ptr [ebx], 1",
        "mov dword ptr [ebx], 1",
        "mov dword ptr [ebx], 2",
        "mov word ptr [ebx], 1",
        "hlt",
    );
    let device = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let plan = plan.memory(DEVICE, 0x1000, device.clone());
    let (zero, one) = (eventfd(), eventfd());
    plan.vm.connect_doorbell(&zero, DEVICE + 0x50, 0).unwrap();
    plan.vm.connect_doorbell(&one, DEVICE + 0x50, 1).unwrap();
    assert_eq!(plan.vm.connect_doorbell(&zero, DEVICE + 0x50, 1).unwrap_err().errno(), libc::EEXIST);
    let guest = plan.run();
    assert_eq!(device.next(), Access::Write(0x50, vec![2, 0, 0, 0]));
    assert_eq!(device.next(), Access::Write(0x50, vec![1, 0]));
    assert_eq!((signals(&zero), signals(&one)), (1, 2));
    assert!(guest.park());
    assert_eq!(device.try_next(), None);
    assert_eq!(guest.counter("exits_mmio_write"), 2);
}
