//! Exits: ports, memory, halts, faults.

use super::guest::{Access, Guest, PATIENCE, Plan, Probe};
use crate::events::MachineEvent;

#[test]
fn ports_are_read_and_written_in_every_size() {
    let code = [
        0xba, 0x10, 0x00, 0x00, 0x00, // mov edx, 0x10
        0xb8, 0x78, 0x56, 0x34, 0x12, // mov eax, 0x12345678
        0xee, // out dx, al
        0x66, 0xef, // out dx, ax
        0xef, // out dx, eax
        0xed, // in eax, dx
        0xef, // out dx, eax
        0xf4, // hlt
    ];
    let probe = Probe::new();
    let Some(plan) = Plan::new(&code) else { return };
    let guest = plan.port(0x0c, 8, probe.clone()).run();
    assert_eq!(probe.next(), Access::Write(4, vec![0x78]));
    assert_eq!(probe.next(), Access::Write(4, vec![0x78, 0x56]));
    assert_eq!(probe.next(), Access::Write(4, vec![0x78, 0x56, 0x34, 0x12]));
    assert_eq!(probe.next(), Access::Read(4, 4));
    assert_eq!(probe.next(), Access::Write(4, vec![0xa0, 0xa1, 0xa2, 0xa3]));
    assert!(guest.park());
    assert_eq!(guest.counter("exits_io_out"), 4);
    assert_eq!(guest.counter("exits_io_in"), 1);
    assert!(guest.no_event());
}

#[test]
fn triple_fault_is_an_end() {
    // ud2, and no table that says what to do then
    let Some(plan) = Plan::new(&[0x0f, 0x0b]) else { return };
    let guest = plan.run();
    assert_eq!(guest.event(), MachineEvent::TripleFault);
    assert!(guest.park());
}
