//! Exits: ports, memory, faults.

use super::guest::{Access, DEVICE, Plan, Probe, code};
use crate::bus::BusDevice;
use crate::events::MachineEvent;

#[test]
fn ports_are_read_and_written_in_every_size() {
    let code = code!(
        "mov edx, 0x10",
        "mov eax, 0x12345678",
        "out dx, al",
        "out dx, ax",
        "out dx, eax",
        "in eax, dx",
        "out dx, eax",
        "hlt",
    );
    let probe = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.port(0x0c, 8, probe.clone()).run();
    assert_eq!(probe.next(), Access::Write(4, vec![0x78]));
    assert_eq!(probe.next(), Access::Write(4, vec![0x78, 0x56]));
    assert_eq!(probe.next(), Access::Write(4, vec![0x78, 0x56, 0x34, 0x12]));
    assert_eq!(probe.next(), Access::Read(4, 4));
    assert_eq!(probe.next(), Access::Write(4, vec![0xa0, 0xa1, 0xa2, 0xa3]));
    assert!(guest.park());
    assert_eq!((guest.counter("exits_io_out"), guest.counter("exits_io_in")), (4, 1));
    assert_eq!((guest.counter("unknown_reads"), guest.counter("unknown_writes")), (0, 0));
    assert!(guest.no_event());
    // KVM has counters of its own from Linux 5.14 on; one that emulates calls exits what it likes.
    let counters = guest.vcpus.counters();
    if let Some((_, exits)) = counters.iter().find(|(name, _)| *name == "kvm_exits") {
        assert!(*exits >= 5, "{counters:?}");
    }
}

#[test]
fn string_instructions_reach_the_port_once_for_each_element() {
    let code = code!(
        "cld",
        "mov edx, 0x10",
        "mov edi, 0x4000",
        "mov ecx, 5",
        "rep insw",
        "mov esi, 0x4000",
        "mov ecx, 5",
        "rep outsw",
        "hlt",
    );
    let probe = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let _guest = plan.port(0x10, 2, probe.clone()).run();
    for _ in 0..5 {
        assert_eq!(probe.next(), Access::Read(0, 2));
    }
    for _ in 0..5 {
        assert_eq!(probe.next(), Access::Write(0, vec![0xa0, 0xa1]));
    }
}

#[test]
fn memory_is_read_and_written_in_every_size() {
    let code = code!(
        "mov ebx, 0xc0000000",
        "mov eax, 0x12345678",
        "mov [ebx], al",
        "mov [ebx + 1], ax",
        "mov [ebx + 4], eax",
        "movdqu xmm0, [ebx + 8]",
        "movdqu [ebx + 0x18], xmm0",
        "movzx eax, byte ptr [ebx + 0x27]",
        "mov [ebx + 3], al",
        "hlt",
    );
    let probe = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.memory(DEVICE, 0x28, probe.clone()).run();
    let eight = vec![0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7];
    for access in [
        Access::Write(0, vec![0x78]),
        Access::Write(1, vec![0x78, 0x56]),
        Access::Write(4, vec![0x78, 0x56, 0x34, 0x12]),
        // KVM makes two of what is longer than eight bytes.
        Access::Read(0x08, 8),
        Access::Read(0x10, 8),
        Access::Write(0x18, eight.clone()),
        Access::Write(0x20, eight),
        Access::Read(0x27, 1),
        Access::Write(3, vec![0xa0]),
    ] {
        assert_eq!(probe.next(), access);
    }
    assert!(guest.park());
    assert_eq!((guest.counter("exits_mmio_write"), guest.counter("exits_mmio_read")), (6, 3));
}

#[test]
fn accesses_that_no_device_has_as_a_whole_read_as_ones_and_are_counted() {
    let code = code!(
        "mov ebx, 0xc0000000",
        "mov dword ptr [ebx + 6], 1", // across the end
        "mov eax, [ebx + 6]",
        "mov edx, 0x20",
        "out dx, eax",
        "mov eax, [ebx - 2]", // across the beginning, and a page's
        "out dx, eax",
        "mov eax, 5",
        "mov edx, 0x1f",
        "in ax, dx", // across the beginning of the port
        "mov edx, 0x20",
        "out dx, eax",
        "mov edx, 0xffff", // the last port
        "in al, dx",
        "mov edx, 0x20",
        "out dx, al",
        "mov al, [0xfffffff0]", // the last page of 32 bits
        "out dx, al",
        "hlt",
    );
    let (near, port) = (Probe::new(), Probe::new());
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.memory(DEVICE, 8, near.clone()).port(0x20, 4, port.clone()).run();
    assert_eq!(port.next_write(), [0xff; 4]);
    // KVM splits at the page, so the device is asked for its half.
    assert_eq!(port.next_write(), [0xff, 0xff, 0xa0, 0xa1]);
    assert_eq!(port.next_write(), [0xff, 0xff, 0, 0]);
    assert_eq!(port.next_write(), [0xff]);
    assert_eq!(port.next_write(), [0xff]);
    assert!(guest.park());
    assert_eq!(near.try_next(), Some(Access::Read(0, 2)));
    assert_eq!(near.try_next(), None);
    assert_eq!((guest.counter("unknown_reads"), guest.counter("unknown_writes")), (5, 1));
}

#[test]
fn triple_fault_is_an_end() {
    // And no table that says what to do then.
    let Some(plan) = Plan::new(code!("ud2")) else { return };
    let guest = plan.run();
    assert_eq!(guest.event(), MachineEvent::TripleFault);
    assert!(guest.park());
    assert!(guest.vcpus.release().unwrap_err().to_string().contains("triple fault"));
}

#[test]
fn vcpu_that_cannot_go_on_ends_the_guest_with_kvms_numbers() {
    // The next instruction is nowhere: no RAM, and no device that code can be fetched from.
    let Some(plan) = Plan::new(code!("mov eax, 0xc0000000", "jmp eax")) else { return };
    let guest = plan.run();
    match guest.event() {
        MachineEvent::VcpuFailed(text) => {
            assert!(text.starts_with("KVM_EXIT_INTERNAL_ERROR, suberror 1 (emulation)"), "{text}");
            assert!(text.ends_with("at 0xc0000000"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(guest.park());
}

#[test]
fn panic_of_a_device_is_a_bug_and_the_other_vcpus_stop() {
    struct Broken;
    impl BusDevice for Broken {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {
            panic!("On purpose")
        }
    }
    let code = code!("2:", "test esi, esi", "jnz 2b", "out 0x10, al", "hlt");
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.port(0x10, 1, std::sync::Arc::new(Broken)).start(3);
    guest.vcpus.release().unwrap();
    assert_eq!(guest.event(), MachineEvent::Bug("On purpose".to_owned()));
    assert!(guest.park());
    assert_eq!(guest.vcpus.release().unwrap_err().errno(), libc::ENOTRECOVERABLE);
    assert_eq!(guest.vcpus.threads()[0], 0);
    assert!(guest.vcpus.threads()[1] > 0);
}
