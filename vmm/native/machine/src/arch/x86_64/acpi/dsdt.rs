//! The DSDT: every device of the machine, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use strato_plumbing::{Failure, Result};

use super::{Board, bytes, layout, table};
use crate::arch::SlotPlace;
use crate::platform::power;

/// Integers of 64 bits (section 5.2.11.1).
const REVISION: u8 = 2;

/// Virtio over memory-mapped registers (Linux drivers/virtio/virtio_mmio.c).
const HID_VIRTIO_MMIO: &str = "LNRO0005";
/// Generic event device (section 5.6.9).
const HID_EVENTS: &str = "ACPI0013";
/// QEMU's panic device (docs/specs/pvpanic.rst).
const HID_PANIC: &str = "QEMU0001";
/// The generation has a name of each maker's own, and the compatible one that drivers look for (Microsoft, "Virtual
/// Machine Generation ID").
const HID_GENERATION: &str = "STRT0001";
const CID_GENERATION: &str = "VM_Gen_Counter";
/// Power button, and 16550 serial port.
const PNP_POWER_BUTTON: &str = "PNP0C0C";
const PNP_SERIAL: &str = "PNP0501";

/// What is told to the button and to the generation (sections 5.6.6 and, for the latter, Microsoft's paper).
const NOTIFY: u8 = 0x80;

const SERIAL_PORTS: u8 = 8;

/// The whole table.
pub fn dsdt(board: &Board) -> Result<Sdt> {
    let mut devices = Vec::new();
    for slot in &board.slots {
        devices.push(virtio_mmio(slot)?);
    }
    devices.extend([power_button(), generation(board), events(board), panic(board)]);
    devices.extend(board.serial.map(|(port, gsi)| serial(port, gsi)));
    let devices: Vec<_> = devices.into_iter().map(Encoded).collect();
    let children: Vec<&dyn Aml> = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut table = table(b"DSDT", REVISION);
    table.append_slice(&bytes(&Scope::new(Path::new("\\_SB_"), children)));
    // Sleep state S5, "off": what to write as SLP_TYP; the rest is for machines with fixed registers (section 7.4.2).
    let off = Package::new(vec![&power::SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    table.append_slice(&bytes(&Name::new(Path::new("\\_S5_"), &off)));
    Ok(table)
}

/// A device that is AML already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn named(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

/// Edge-triggered and active high, as irqfds raise them; `shared` with other devices or not.
fn line(gsi: u32, shared: bool) -> Interrupt {
    let (consumer, edge, active_low) = (true, true, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

fn virtio_mmio(slot: &SlotPlace) -> Result<Vec<u8>> {
    const MAX_INDEX: u32 = 0xFFF;
    let (Ok(addr), true) = (u32::try_from(slot.guest_addr), slot.index <= MAX_INDEX) else {
        return Err(Failure::refused(format!(
            "Slot {} at {:#x}: a slot is numbered up to {MAX_INDEX} and is below 4 GiB",
            slot.index, slot.guest_addr
        )));
    };
    let registers = Memory32Fixed::new(true, addr, layout::PAGE_SIZE as u32);
    let line = line(slot.gsi, true);
    Ok(bytes(&Device::new(
        Path::new(&format!("V{:03X}", slot.index)),
        vec![
            &named("_HID", &HID_VIRTIO_MMIO),
            &named("_UID", &slot.index),
            &named("_CRS", &ResourceTemplate::new(vec![&registers, &line])),
        ],
    )))
}

fn power_button() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("PWRB"),
        vec![&named("_HID", &EISAName::new(PNP_POWER_BUTTON)), &named("_UID", &ZERO)],
    ))
}

fn generation(board: &Board) -> Vec<u8> {
    let (low, high) = (board.generation_addr & 0xFFFF_FFFF, board.generation_addr >> 32);
    bytes(&Device::new(
        Path::new("VGEN"),
        vec![
            &named("_HID", &HID_GENERATION),
            &named("_CID", &CID_GENERATION),
            &named("_DDN", &CID_GENERATION),
            &named("ADDR", &Package::new(vec![&low, &high])),
        ],
    ))
}

/// One line for all events: its method reads which there are, which also takes them, and passes them on.
fn events(board: &Board) -> Vec<u8> {
    let line = line(board.ged_gsi, false);
    let port = board.power_port + power::EVENTS;
    let (pending, register) = (Local(0), Path::new("EVTS"));
    let (button, generation) = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.VGEN"));
    let is_button = And::new(&ZERO, &pending, &power::EVENT_BUTTON);
    let is_generation = And::new(&ZERO, &pending, &power::EVENT_GENERATION);
    bytes(&Device::new(
        Path::new("GED_"),
        vec![
            &named("_HID", &HID_EVENTS),
            &named("_UID", &ZERO),
            &named("_CRS", &ResourceTemplate::new(vec![&line])),
            &OpRegion::new(Path::new("EREG"), OpRegionSpace::SystemIO, &port, &1u8),
            &Field::new(
                Path::new("EREG"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    &Store::new(&pending, &register),
                    &If::new(&is_button, vec![&Notify::new(&button, &NOTIFY)]),
                    &If::new(&is_generation, vec![&Notify::new(&generation, &NOTIFY)]),
                ],
            ),
        ],
    ))
}

fn panic(board: &Board) -> Vec<u8> {
    let port = IO::new(board.pvpanic_port, board.pvpanic_port, 1, 1);
    bytes(&Device::new(
        Path::new("PEVT"),
        vec![&named("_HID", &HID_PANIC), &named("_CRS", &ResourceTemplate::new(vec![&port]))],
    ))
}

fn serial(port: u16, gsi: u32) -> Vec<u8> {
    let ports = IO::new(port, port, 1, SERIAL_PORTS);
    let line = line(gsi, false);
    bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &named("_HID", &EISAName::new(PNP_SERIAL)),
            &named("_UID", &ZERO),
            &named("_CRS", &ResourceTemplate::new(vec![&ports, &line])),
        ],
    ))
}
