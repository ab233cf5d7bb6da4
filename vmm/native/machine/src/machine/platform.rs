//! The platform devices of a machine, on its bus of ports.

use std::sync::Arc;

use strato_plumbing::{Failure, Result};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::config::{PlatformConfig, SerialConfig};
use crate::arch::Board;
use crate::bus::{Bus, BusDevice};
use crate::events::MachineEvents;
use crate::platform::power::Power;
use crate::platform::pvpanic::Pvpanic;
use crate::platform::serial::Serial;
use crate::vm::Vm;

/// How many ports each has.
const POWER_PORTS: u64 = 4;
const PVPANIC_PORTS: u64 = 1;
const SERIAL_PORTS: u64 = 8;

/// See the module.
pub(super) struct Platform {
    pub(super) power: Arc<Power>,
    pvpanic: Arc<Pvpanic>,
    pub(super) serial: Option<Arc<Serial>>,
    /// What the tables say of them. Processors and slots are the machine's.
    pub(super) board: Board,
}

/// An eventfd whose signals are edges on a line, which KVM holds as long as the VM lives.
fn interrupt(vm: &Vm, gsi: u32) -> Result<EventFd> {
    let failed = |error: std::io::Error| {
        Failure::new("Cannot make an eventfd", error.raw_os_error().unwrap_or(libc::EMFILE))
    };
    let interrupt = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(failed)?;
    vm.connect_interrupt(&interrupt, gsi)?;
    Ok(interrupt)
}

impl Platform {
    /// Makes the devices and puts them on the bus.
    ///
    /// # Errors
    /// EEXIST: something else is in their place; no descriptors.
    pub(super) fn add(
        vm: &Vm,
        ports: &mut Bus,
        config: PlatformConfig,
        events: &Arc<dyn MachineEvents>,
    ) -> Result<Self> {
        let power = Arc::new(Power::new(Arc::clone(events), interrupt(vm, config.ged_gsi)?));
        let pvpanic = Arc::new(Pvpanic::new(Arc::clone(events)));
        ports.insert(config.power_port.into(), POWER_PORTS, Arc::clone(&power) as Arc<dyn BusDevice>)?;
        ports.insert(
            config.pvpanic_port.into(),
            PVPANIC_PORTS,
            Arc::clone(&pvpanic) as Arc<dyn BusDevice>,
        )?;
        let (mut serial, mut place) = (None, None);
        if let Some(SerialConfig { port, gsi, output }) = config.serial {
            let device = Arc::new(Serial::new(output, interrupt(vm, gsi)?)?);
            ports.insert(port.into(), SERIAL_PORTS, Arc::clone(&device) as Arc<dyn BusDevice>)?;
            (serial, place) = (Some(device), Some((port, gsi)));
        }
        let board = Board {
            num_cpus: 0,
            tables_addr: config.tables_addr,
            generation_addr: config.generation_addr,
            ged_gsi: config.ged_gsi,
            pvpanic_port: config.pvpanic_port,
            power_port: config.power_port,
            serial: place,
            slots: Vec::new(),
        };
        Ok(Self { power, pvpanic, serial, board })
    }

    /// As after power-on.
    pub(super) fn reset(&self) {
        self.power.reset();
        self.pvpanic.reset();
        if let Some(serial) = &self.serial {
            serial.reset();
        }
    }
}
