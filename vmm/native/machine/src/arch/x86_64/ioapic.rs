//! The I/O APIC (Intel 82093AA), in this program, above KVM's local APICs.
//!
//! KVM delivers a signal of an irqfd on the spot only if its route is a message to a local APIC; a route to an I/O APIC
//! of KVM's own takes a kernel thread for every interrupt (virt/kvm/eventfd.c, `irqfd_wakeup`), and two devices on
//! one line could swallow each other's edge there. So the redirection table lives here, and every line that the
//! guest has unmasked is such a message. Guests touch the table when they take a line into use, and hardly ever again.
//!
//! Every access of the table is a write of the select register and then one of the window. KVM keeps the former where
//! it can ([`CoalescedWrites`]), without an exit; they are taken over before anything that depends on them.
//!
//! Lines are edge triggered. An edge on a masked line is lost, as on the real thing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use strato_plumbing::{Failure, Result};

use super::coalesced::CoalescedWrites;
use crate::bus::{Bus, BusDevice};

/// Where every operating system expects it, and how long its window is.
const ADDR: u64 = 0xfec0_0000;
const WINDOW: u64 = 0x1000;

/// Lines, numbered from 0: the redirection table's entries.
pub const LINES: u32 = 24;

/// Offsets in the window (82093AA data sheet, 3.1).
const IOREGSEL: u64 = 0x00;
const IOREGSEL_LEN: u32 = 4;
const IOWIN: u64 = 0x10;

/// Registers behind the window (82093AA data sheet, 3.2).
const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;

/// Version 0x11, and the last entry of the table.
const VERSION: u32 = 0x11 | (LINES - 1) << 16;
const ID_BITS: u32 = 0x0f00_0000;

/// Bits of an entry: mask, and those that only the chip writes (remote IRR, delivery status).
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = 1 << 14 | 1 << 12;

/// The address of messages to local APICs (Intel SDM volume 3, 11.11.1).
const MESSAGE_ADDR: u32 = 0xfee0_0000;

#[derive(Clone, Copy)]
struct Table {
    select: u8,
    id: u32,
    entries: [u64; LINES as usize],
}

impl Table {
    fn at_power_on() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; LINES as usize] }
    }

    /// Selects a register; the upper bytes of a wider write are none.
    fn select(&mut self, data: &[u8]) {
        self.select = data.first().copied().unwrap_or(self.select);
    }

    /// Which entry the selected register is a half of, and whether it is the upper one.
    fn half(&self) -> Option<(usize, bool)> {
        let register = self.select.checked_sub(IOREDTBL)?;
        let index = usize::from(register / 2);
        (index < self.entries.len()).then_some((index, register % 2 == 1))
    }

    fn read(&self) -> u32 {
        match (self.select, self.half()) {
            (_, Some((index, upper))) => {
                let entry = self.entries.get(index).copied().unwrap_or_default();
                (if upper { entry >> 32 } else { entry }) as u32
            }
            (IOAPICID | IOAPICARB, _) => self.id,
            (IOAPICVER, _) => VERSION,
            _ => 0,
        }
    }

    /// True if an entry was written.
    fn write(&mut self, value: u32) -> bool {
        let Some((index, upper)) = self.half() else {
            if self.select == IOAPICID {
                self.id = value & ID_BITS;
            }
            return false;
        };
        if let Some(entry) = self.entries.get_mut(index) {
            let (keep, new) = match upper {
                true => (0xffff_ffff, u64::from(value) << 32),
                false => (!0xffff_ffff, u64::from(value) & !READ_ONLY),
            };
            *entry = *entry & keep | new;
        }
        true
    }

    /// The lines that are not masked, as messages: (line, address, data).
    fn messages(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.entries.iter().zip(0..).filter(|(entry, _)| **entry & MASKED == 0).map(|(entry, line)| {
            let (destination, logical) = ((entry >> 56) as u32, (entry >> 11 & 1) as u32);
            let (vector, mode, level) =
                ((entry & 0xff) as u32, (entry >> 8 & 7) as u32, (entry >> 15 & 1) as u32);
            (line, MESSAGE_ADDR | destination << 12 | logical << 2, vector | mode << 8 | level << 15)
        })
    }
}

struct State {
    table: Table,
    /// What KVM was told last.
    routes: Vec<(u32, u32, u32)>,
    /// Writes of the select register, once there is a vCPU and where KVM can keep them.
    kept: Option<CoalescedWrites>,
    /// How many of them have been taken over.
    taken: u64,
}

impl State {
    /// Takes over what KVM has kept.
    fn catch_up(&mut self) {
        let Self { table, kept: Some(kept), taken, .. } = self else { return };
        *taken += kept.take(|addr, data| {
            if addr == ADDR + IOREGSEL {
                table.select(data);
            }
        });
    }
}

/// See the module.
pub struct InterruptController {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

impl InterruptController {
    /// Makes KVM's half, the local APICs of vCPUs to come, and ours, all lines masked. There is no PIC and no PIT.
    ///
    /// # Errors
    /// What KVM says.
    pub fn new(vm: Arc<VmFd>) -> Result<Arc<Self>> {
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [LINES.into(), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&split)
            .map_err(|error| Failure::new("Cannot create interrupt controllers", error.errno()))?;
        let state = State { table: Table::at_power_on(), routes: Vec::new(), kept: None, taken: 0 };
        Ok(Arc::new(Self { vm, state: Mutex::new(state) }))
    }

    /// Puts the I/O APIC where guests look for it.
    ///
    /// # Errors
    /// Something else is there.
    pub fn insert(self: &Arc<Self>, memory: &mut Bus) -> Result<()> {
        memory.insert(ADDR, WINDOW, Arc::clone(self) as Arc<dyn BusDevice>)
    }

    /// Writes of the select register are no exits from here on, if KVM can do that. `vcpu` is the VM's first, before
    /// it runs.
    ///
    /// # Errors
    /// What KVM says.
    pub fn coalesce(&self, vcpu: &VcpuFd) -> Result<()> {
        let kept = CoalescedWrites::begin(&self.vm, vcpu, ADDR + IOREGSEL, IOREGSEL_LEN)?;
        self.locked().kept = kept;
        Ok(())
    }

    /// How many writes of the guest were no exits.
    pub fn coalesced_writes(&self) -> u64 {
        self.current().taken
    }

    /// As after power-on. No vCPU is in the guest.
    ///
    /// # Errors
    /// What KVM says.
    pub fn reset(&self) -> Result<()> {
        let mut state = self.current();
        state.table = Table::at_power_on();
        self.route(&mut state)
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As of the guest's last write.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.locked();
        state.catch_up();
        state
    }

    /// Tells KVM of the table, if that says anything new. It waits for interrupts under way, which is not cheap.
    fn route(&self, state: &mut State) -> Result<()> {
        if state.table.messages().eq(state.routes.iter().copied()) {
            return Ok(());
        }
        let routes: Vec<_> = state.table.messages().collect();
        let entry = |&(line, address, data): &(u32, u32, u32)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: line,
                type_: KVM_IRQ_ROUTING_MSI,
                ..kvm_irq_routing_entry::default()
            };
            (entry.u.msi.address_lo, entry.u.msi.data) = (address, data);
            entry
        };
        let entries: Vec<kvm_irq_routing_entry> = routes.iter().map(entry).collect();
        let table = KvmIrqRouting::from_entries(&entries);
        let table = table.map_err(|_| Failure::refused("Interrupt routes do not fit KVM's table"))?;
        let outcome = self.vm.set_gsi_routing(&table);
        outcome.map_err(|error| Failure::new("Cannot route interrupts", error.errno()))?;
        state.routes = routes;
        Ok(())
    }
}

impl BusDevice for InterruptController {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => self.current().table.select.into(),
            IOWIN => self.current().table.read(),
            _ => 0,
        };
        let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.current();
        match (offset, <[u8; 4]>::try_from(data)) {
            (IOREGSEL, _) => state.table.select(data),
            // Nobody writes entries in pieces.
            (IOWIN, Ok(bytes)) if state.table.write(u32::from_le_bytes(bytes)) => {
                // Refused are messages that no APIC can take; such a line stays silent, as it would elsewhere.
                let _ = self.route(&mut state);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(select: u8, value: u32) -> Table {
        let mut table = Table::at_power_on();
        table.select = select;
        table.write(value);
        table
    }

    #[test]
    fn table_is_masked_at_power_on_and_says_how_long_it_is() {
        let mut table = Table::at_power_on();
        assert_eq!(table.messages().count(), 0);
        table.select = IOAPICVER;
        assert_eq!(table.read(), 0x0017_0011);
        (table.select, table.id) = (IOAPICARB, 0x0500_0000);
        assert_eq!(table.read(), 0x0500_0000);
        for line in 0..24 {
            table.select = IOREDTBL + 2 * line;
            assert_eq!(table.read(), 0x0001_0000, "line {line}");
        }
        for select in [0x03, 0x0f, IOREDTBL + 48, 0xff] {
            table.select = select;
            assert!(!table.write(0xffff_ffff));
            assert_eq!(table.read(), 0, "register {select:#x}");
        }
    }

    #[test]
    fn unmasked_line_is_a_message_to_its_destination() {
        let mut table = written(IOREDTBL + 2 * 7 + 1, 0x0300_0000);
        table.select -= 1;
        table.write(0x0000_0931);
        // Vector 0x31, lowest priority, logical destination 3, edge.
        assert_eq!(table.messages().collect::<Vec<_>>(), [(7, 0xfee0_3004, 0x0131)]);
        table.write(0x0001_0931);
        assert_eq!(table.messages().count(), 0);
    }

    #[test]
    fn bits_that_only_the_chip_writes_stay_clear() {
        assert_eq!(written(IOREDTBL, 0xffff_ffff).read(), !0x5000);
        assert_eq!(written(IOAPICID, 0xffff_ffff).read(), 0x0f00_0000);
    }
}
