//! What a machine is made of, in numbers that the board's plan has resolved.

use std::fs::File;

/// What a machine is from its first moment.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Its name, for messages.
    pub name: String,
    /// How many vCPUs it will have.
    pub num_cpus: u32,
    /// How many of them the guest sees on one core.
    pub threads_per_core: u32,
}

/// The serial port.
#[derive(Debug)]
pub struct SerialConfig {
    /// First of its ports.
    pub port: u16,
    /// Its interrupt line.
    pub gsi: u32,
    /// Where its bytes go.
    pub output: Option<File>,
}

/// The devices that are not virtio, and where the tables go that describe them all.
#[derive(Debug)]
pub struct PlatformConfig {
    /// Interrupt line of the generic event device.
    pub ged_gsi: u32,
    /// Port of the panic device.
    pub pvpanic_port: u16,
    /// First port of the power registers.
    pub power_port: u16,
    /// The serial port, if there is one.
    pub serial: Option<SerialConfig>,
    /// Where the firmware tables begin.
    pub tables_addr: u64,
    /// Where the generation's 16 bytes are.
    pub generation_addr: u64,
}
