//! The tables as a guest walks them, and what ACPI's own compiler says of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use strato_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::arch::SlotPlace;

fn board(num_slots: u32) -> Board {
    Board {
        num_cpus: 4,
        tables_addr: 0xE_0000,
        generation_addr: 0xF_F000,
        ged_gsi: 5,
        pvpanic_port: 0x505,
        power_port: 0x600,
        serial: Some((0x3F8, 4)),
        slots: (0..num_slots)
            .map(|index| SlotPlace {
                index,
                guest_addr: 0xC000_0000 + u64::from(index) * 0x1000,
                gsi: 6 + index % 18,
            })
            .collect(),
    }
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn read(ram: &GuestRam, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A table with its address, its length and its checksum looked at.
fn table_at(ram: &GuestRam, addr: u64) -> (String, Vec<u8>) {
    assert_eq!(addr % ALIGN, 0);
    let len = word(&read(ram, addr, 8), 4) as usize;
    let table = read(ram, addr, len);
    let signature = String::from_utf8(table[..4].to_vec()).unwrap();
    assert_eq!(sum(&table), 0, "{signature}");
    assert_eq!(table[10..16], OEM_ID, "{signature}");
    (signature, table)
}

/// From the root pointer to every table, by signature.
fn walk(ram: &GuestRam, board: &Board) -> BTreeMap<String, Vec<u8>> {
    let root = read(ram, board.tables_addr, 36);
    assert_eq!((&root[..8], sum(&root[..20]), sum(&root), root[15]), (&b"RSD PTR "[..], 0, 0, 2));
    let (name, xsdt) = table_at(ram, quad(&root, 24));
    assert_eq!(name, "XSDT");
    let mut tables: BTreeMap<_, _> =
        (36..xsdt.len()).step_by(8).map(|at| table_at(ram, quad(&xsdt, at))).collect();
    let (name, dsdt) = table_at(ram, quad(&tables["FACP"], 140));
    tables.insert(name, dsdt);
    tables
}

fn tables(board: &Board) -> BTreeMap<String, Vec<u8>> {
    let ram = ram();
    write_tables(&ram, board).unwrap();
    walk(&ram, board)
}

#[test]
fn every_table_is_found_from_the_root_with_right_checksums() {
    for num_slots in [0, 1, 32] {
        let board = board(num_slots);
        let names: Vec<_> = tables(&board).into_keys().collect();
        assert_eq!(names, ["APIC", "DSDT", "FACP"]);
    }
}

#[test]
fn fadt_says_what_there_is_not_and_where_the_registers_are() {
    let fadt = &tables(&board(1))["FACP"];
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    let flags = word(fadt, 112);
    for bit in [0, 4, 5, 10, 12, 20] {
        assert_ne!(flags & 1 << bit, 0, "flag {bit}");
    }
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 1 << 2 | 1 << 3 | 1 << 5);
    // Generic addresses: port I/O, 8 bits wide, byte access.
    let register = |at: usize| (fadt[at..at + 4].to_vec(), quad(fadt, at + 4));
    let port = |number: u64| (vec![1, 8, 0, 1], number);
    assert_eq!((register(116), fadt[128]), (port(0x603), 0x42));
    assert_eq!((register(244), register(256)), (port(0x601), port(0x602)));
}

#[test]
fn madt_lists_each_processor_once_and_one_io_apic() {
    let madt = &tables(&board(1))["APIC"];
    assert_eq!((word(madt, 36), word(madt, 40)), (0xFEE0_0000, 0));
    let mut entries = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        let len = usize::from(madt[at + 1]);
        entries.push(madt[at..at + len].to_vec());
        at += len;
    }
    let (processors, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry[0] == 0);
    let expected: Vec<_> = (0..4).map(|cpu| vec![0, 8, cpu, cpu, 1, 0, 0, 0]).collect();
    assert_eq!(processors, expected);
    assert_eq!(others, [vec![1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0], vec![4, 6, 0xFF, 0, 0, 1]]);
}

#[test]
fn table_of_255_processors_fits_beside_32_slots() {
    let board = Board { num_cpus: 255, ..board(32) };
    assert_eq!(tables(&board)["APIC"].len(), 44 + 255 * 8 + 12 + 6);
}

#[test]
fn nothing_is_written_at_or_behind_the_generation() {
    let ram = ram();
    ram.write_slice(&[0x77; 0x1000], GuestAddress(0xF_F000)).unwrap();
    write_tables(&ram, &board(32)).unwrap();
    assert_eq!(read(&ram, 0xF_F000, 0x1000), [0x77; 0x1000]);
    assert_eq!(read(&ram, 0xD_F000, 0x1000), [0; 0x1000]);
}

#[test]
fn boards_that_cannot_be_described_are_refused_by_name() {
    let refusal = |board: &Board| write_tables(&ram(), board).unwrap_err().to_string();
    let near = Board { generation_addr: 0xE_0400, ..board(32) };
    assert!(refusal(&near).contains("beyond 0xe0400: the board has too many slots"), "{}", refusal(&near));
    for addr in [0xD_FFF8, 0xF_FFF8, 0xF_F004] {
        assert_eq!(
            refusal(&Board { generation_addr: addr, ..board(1) }),
            format!("Generation at {addr:#x} must be at a multiple of 8 from 0xe0000 to 0xffff0")
        );
    }
    let mut high = board(1);
    high.slots[0].guest_addr = 1 << 32;
    assert_eq!(refusal(&high), "Slot 0 at 0x100000000: a slot is numbered up to 4095 and is below 4 GiB");
}

/// Runs ACPI's compiler and returns what it says.
fn iasl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl").args(arguments).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}\n{text}");
    text
}

/// Disassembles all tables and compiles them again; returns the DSDT's source.
fn recompiled(name: &str, board: &Board) -> Option<String> {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: no iasl here (Debian package acpica-tools)");
        return None;
    }
    let folder = std::env::temp_dir().join(format!("strato-acpi-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for (name, table) in tables(board) {
        fs::write(folder.join(format!("{name}.aml")), table).unwrap();
        let text = iasl(&folder, &["-d", &format!("{name}.aml")]);
        assert!(!text.contains("Warning") && !text.contains("Error"), "{name}\n{text}");
        let text = iasl(&folder, &["-vi", &format!("{name}.dsl")]);
        let complaints: Vec<_> = text.lines().filter(|line| matters(line)).collect();
        assert!(complaints.is_empty(), "{name}\n{text}");
    }
    let source = fs::read_to_string(folder.join("DSDT.dsl")).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    Some(source)
}

/// Complaints stand in lines of their own, with their number.
fn matters(line: &str) -> bool {
    line.contains("Error  ") || line.contains("Warning  ")
}

#[test]
fn acpi_compiler_reads_back_every_device() {
    let Some(source) = recompiled("devices", &board(32)) else { return };
    let count = |text: &str| source.matches(text).count();
    assert_eq!(count("\"LNRO0005\""), 32);
    for (text, times) in [
        ("\"ACPI0013\"", 1),
        ("\"QEMU0001\"", 1),
        ("\"VM_Gen_Counter\"", 2),
        ("EisaId (\"PNP0C0C\")", 1),
        ("EisaId (\"PNP0501\")", 1),
        ("Name (\\_S5, Package (0x04)", 1),
        ("Notify (\\_SB.PWRB, 0x80)", 1),
        ("Notify (\\_SB.VGEN, 0x80)", 1),
        ("OperationRegion (EREG, SystemIO, 0x0600, One)", 1),
        ("0xC001F000,         // Address Base", 1),
    ] {
        assert_eq!(count(text), times, "{text}\n{source}");
    }
    // Lines of virtio devices are shared, those of the event device and the serial port are not.
    assert_eq!(count("Interrupt (ResourceConsumer, Edge, ActiveHigh, Shared, ,, )"), 32);
    assert_eq!(count("Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )"), 2);
}

#[test]
fn acpi_compiler_takes_a_board_without_slots_and_serial_port() {
    let Some(source) = recompiled("bare", &Board { serial: None, ..board(0) }) else { return };
    assert!(!source.contains("PNP0501") && !source.contains("LNRO0005"));
}
