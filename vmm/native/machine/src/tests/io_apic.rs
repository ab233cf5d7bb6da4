//! The I/O APIC's registers, as a guest's instructions reach them. KVM keeps writes of the select register to itself
//! where it can.

use kvm_ioctls::Cap;

use super::guest::{Plan, Probe, WORD, code};
use crate::bus::BusDevice;

const IOREGSEL: u64 = 0x00;

fn keeps_writes(plan: &Plan) -> bool {
    plan.vm.fd().check_extension(Cap::CoalescedMmio)
}

#[test]
fn writes_of_the_select_register_are_exits_only_when_the_ring_is_full() {
    let code = code!(
        "mov ebx, 0xfec00000",
        "mov ecx, 400",
        "2:",
        "mov [ebx], ecx",
        "dec ecx",
        "jnz 2b",
        "mov eax, [ebx]",
        "out 0x10, eax",
        "hlt",
    );
    let said = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    // The ring takes 169, and the exit that finds it full empties it. Before Linux 6.12 KVM sometimes takes it for full
    // when its positions wrap around (virt/kvm/coalesced_mmio.c, `coalesced_mmio_has_room`).
    let expected = if keeps_writes(&plan) { 2..=4 } else { 400..=400 };
    let guest = plan.port(0x10, 4, said.clone()).run();
    assert_eq!(said.next_write(), 1u32.to_le_bytes());
    assert!(guest.park());
    let exits = guest.counter("exits_mmio_write");
    assert!(expected.contains(&exits), "{exits}");
    assert_eq!(exits + guest.vm.interrupts().coalesced_writes(), 400);
    assert_eq!((guest.counter("exits_mmio_read"), guest.counter("unknown_writes")), (1, 0));
}

#[test]
fn window_is_the_register_that_was_selected_last() {
    let code = code!(
        "mov ebx, 0xfec00000",
        "mov ecx, 0x3f", // from the last register of the table to its first
        "2:",
        "mov dword ptr [ebx], 0x10", // not this one
        "mov byte ptr [ebx + 1], 0x11",
        "mov byte ptr [ebx], cl",
        "mov word ptr [ebx + 2], 0x1212",
        "lea edx, [ecx + 0x10000]",
        "mov [ebx + 0x10], edx",
        "dec ecx",
        "cmp ecx, 0x10",
        "jae 2b",
        "mov ecx, 0x3f",
        "2:",
        "mov [ebx], ecx",
        "mov eax, [ebx + 0x10]",
        "out 0x10, eax",
        "dec ecx",
        "cmp ecx, 0x10",
        "jae 2b",
        "hlt",
    );
    let said = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let _guest = plan.port(0x10, 4, said.clone()).run();
    for register in (0x10..=0x3fu32).rev() {
        assert_eq!(said.next_write(), (0x10000 + register).to_le_bytes());
    }
}

#[test]
fn reset_forgets_what_was_selected_before() {
    let code = code!("mov dword ptr [0xfec00000], 0x1f", "out 0x10, al", "hlt");
    let said = Probe::new();
    let Some(plan) = Plan::new(code) else { return };
    let guest = plan.port(0x10, 1, said.clone()).run();
    said.next_write();
    assert!(guest.park());
    guest.vm.interrupts().reset().unwrap();
    let mut selected = [0xff; 4];
    guest.vm.interrupts().read(IOREGSEL, &mut selected);
    assert_eq!(selected, [0; 4]);
}

#[test]
fn vcpus_that_all_write_at_once_in_any_size_go_on_and_can_be_stopped() {
    const VCPUS: u32 = 4;
    let code = code!(
        "mov ebx, 0xfec00000",
        "2:",
        "inc ecx",
        "mov [ebx], ecx",
        "mov [ebx], cx",
        "mov [ebx + 3], cl",
        "mov [ebx + 2], ecx", // across the register's end
        "movdqu [ebx], xmm0", // longer than it
        "mov [ebx], cl",
        "test cl, 7",
        "jnz 3f",
        "mov [ebx + 0x10], ecx",
        "mov eax, [ebx + 0x10]",
        "3:",
        "inc dword ptr [0x3000 + 4 * esi]",
        "jmp 2b",
    );
    let Some(plan) = Plan::new(code) else { return };
    let kept = keeps_writes(&plan);
    let guest = plan.start(VCPUS);
    guest.vcpus.release().unwrap();
    for index in 0..u64::from(VCPUS) {
        let mut rounds = 0;
        while rounds < 200 {
            rounds = guest.changed(WORD + 4 * index, rounds);
        }
    }
    assert!(guest.park());
    assert!(guest.no_event());
    assert_eq!(guest.vm.interrupts().coalesced_writes() > 0, kept);
    // Nothing is left over for whoever comes next.
    let before = guest.vm.interrupts().coalesced_writes();
    guest.vm.interrupts().reset().unwrap();
    assert_eq!(guest.vm.interrupts().coalesced_writes(), before);
}
