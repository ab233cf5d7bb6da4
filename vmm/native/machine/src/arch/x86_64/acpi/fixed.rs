//! The tables of fixed shape: FADT and MADT.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{Board, OEM_ID, OEM_REVISION, OEM_TABLE_ID, layout, table};
use crate::platform::power;

/// IA-PC boot architecture flags (table 5.11). All that is absent: neither user-visible devices on an ISA bus nor a
/// keyboard controller (bits 0 and 1 clear), no VGA, no message-signalled interrupts of PCI, no CMOS clock.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const MSI_NOT_SUPPORTED: u16 = 1 << 3;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Fixed description: reset and sleep by registers, everything else by the DSDT.
pub fn fadt(board: &Board, dsdt_addr: u64) -> FADT {
    let register = |offset: u16| {
        let port = u64::from(board.power_port) + u64::from(offset);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).dsdt_64(dsdt_addr);
    for flag in [
        Flags::Wbinvd,
        // Both buttons are devices, if there are any, and not bits of registers.
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::ResetRegSup,
        Flags::Headless,
        Flags::HwReducedAcpi,
    ] {
        fadt = fadt.flag(flag);
    }
    fadt.iapc_boot_arch.set(VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | CMOS_RTC_NOT_PRESENT);
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity.set(u64::from_le_bytes(OEM_TABLE_ID));
    fadt.finalize()
}

/// The interrupt controllers: one local APIC per processor, with the NMI at its pin 1, and the I/O APIC. Lines have no
/// overrides: all are as the DSDT says.
pub fn madt(board: &Board) -> Sdt {
    // Revision 5 is ACPI 6.3; nothing newer is in it. No flags: there is no PIC (table 5.19).
    const REVISION: u8 = 5;
    const FLAGS: u32 = 0;
    let mut body = [layout::LAPIC_ADDR.to_le_bytes(), FLAGS.to_le_bytes()].concat();
    // At most 255: `Topology::new`.
    for cpu in (0..board.num_cpus).filter_map(|cpu| u8::try_from(cpu).ok()) {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(0, layout::IOAPIC_ADDR, 0).to_aml_bytes(&mut body);
    body.extend(LINT1_IS_NMI);
    let mut madt = table(b"APIC", REVISION);
    madt.append_slice(&body);
    madt
}

/// Local APIC NMI structure (section 5.2.12.7): type, length, all processors, polarity and trigger of the bus (two
/// bytes), pin.
const LINT1_IS_NMI: [u8; 6] = [4, 6, 0xFF, 0, 0, 1];
