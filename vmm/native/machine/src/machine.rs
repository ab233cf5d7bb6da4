//! The machine: everything put together in the order of a boot, and what its owner can do with it.
//!
//! new, add_memory, add_platform, add_slot, plug, add_cpus, load, resume: each builds on what is there and says what
//! is missing. Methods may be called on any thread; they are carried out one after the other.

mod config;
mod platform;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use strato_plumbing::{Failure, Result};
use strato_virtio_mmio::MmioDevice;
use vm_memory::{Bytes, GuestAddress};

pub use self::config::{MachineConfig, PlatformConfig, SerialConfig};
use self::platform::Platform;
use crate::arch::{self, Board, Boot, CpuModel, SlotPlace, Topology};
use crate::bus::BusDevice;
use crate::events::MachineEvents;
use crate::exit::Buses;
use crate::hub::Hub;
use crate::memory::{self, MemoryConfig};
use crate::slot::{SLOT_LEN, Slot, SlotConfig};
use crate::vcpu::Vcpus;
use crate::vm::Vm;

/// Longer than any pause; a clock can be that far ahead.
const FOREVER: Duration = Duration::from_secs(1 << 32);

struct Parts {
    // First: no vCPU is in a device while the rest goes.
    vcpus: Option<Vcpus>,
    buses: Buses,
    platform: Option<Platform>,
    slots: BTreeMap<u32, Arc<Slot>>,
    model: Option<CpuModel>,
    vm: Vm,
    loaded: bool,
    /// Devices are not paused.
    awake: bool,
}

/// A virtual machine. Dropping it ends the vCPUs' threads, and resets and releases the devices.
pub struct Machine {
    config: MachineConfig,
    hub: Arc<Hub>,
    parts: Mutex<Parts>,
}

fn out_of_order(what: &str) -> Failure {
    Failure::refused(what)
}

impl Machine {
    /// A VM with its interrupt controllers and nothing else. `kvm` is /dev/kvm.
    ///
    /// # Errors
    /// ENOTSUP: KVM lacks something; EINVAL: vCPUs that cannot be.
    pub fn new(kvm: OwnedFd, config: MachineConfig, owner: Arc<dyn MachineEvents>) -> Result<Self> {
        let vm = Vm::new(kvm)?;
        vm.check_cpus(config.num_cpus)?;
        let mut buses = Buses::default();
        vm.interrupts().insert(&mut buses.memory)?;
        let parts = Parts {
            vcpus: None,
            buses,
            platform: None,
            slots: BTreeMap::new(),
            model: None,
            vm,
            loaded: false,
            awake: false,
        };
        Ok(Self { config, hub: Arc::new(Hub::new(owner)), parts: Mutex::new(parts) })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn ram(&self) -> Option<strato_virtio::GuestRamHandle> {
        self.parts().vm.ram().cloned()
    }

    /// Gives the guest its RAM.
    ///
    /// # Errors
    /// EEXIST: it has some; ENOMEM; regions that cannot be.
    pub fn add_memory(&self, config: MemoryConfig) -> Result<()> {
        let mut parts = self.parts();
        if parts.vm.ram().is_some() {
            return Err(Failure::new("Machine has RAM already", libc::EEXIST));
        }
        parts.vm.add_ram(memory::guest_ram(config)?)
    }

    /// Adds the platform devices.
    ///
    /// # Errors
    /// EEXIST: they are there, or something else is in their place.
    pub fn add_platform(&self, config: PlatformConfig) -> Result<()> {
        let mut parts = self.parts();
        parts.still_open()?;
        if parts.platform.is_some() {
            return Err(Failure::new("Machine has its platform devices already", libc::EEXIST));
        }
        let events = Arc::clone(&self.hub) as Arc<dyn MachineEvents>;
        let Parts { vm, buses, platform, .. } = &mut *parts;
        *platform = Some(Platform::add(vm, &mut buses.ports, config, &events)?);
        Ok(())
    }

    /// Adds an empty slot.
    ///
    /// # Errors
    /// EEXIST: there is one of this number, or something else in its place.
    pub fn add_slot(&self, config: SlotConfig) -> Result<()> {
        let mut parts = self.parts();
        parts.still_open()?;
        if parts.slots.contains_key(&config.index) {
            return Err(Failure::new(format!("Machine has a slot {} already", config.index), libc::EEXIST));
        }
        let slot = Arc::new(Slot::new(config));
        let device = Arc::clone(&slot) as Arc<dyn BusDevice>;
        parts.buses.memory.insert(config.guest_addr, SLOT_LEN, device)?;
        parts.slots.insert(config.index, slot);
        Ok(())
    }

    /// Puts a device that is as after power-on into a slot. The guest may run; it learns of it by other ways.
    ///
    /// # Errors
    /// ENOENT: no such slot; EBUSY: it is not empty.
    pub fn plug(&self, index: u32, device: Arc<MmioDevice>) -> Result<()> {
        let parts = self.parts();
        let slot = parts.slot(index)?;
        if let Some(other) = slot.device() {
            return Err(Failure::new(format!("Slot {index} has device {}", other.name()), libc::EBUSY));
        }
        let ram = parts.vm.ram().ok_or_else(|| out_of_order("Machine has no RAM yet: add memory first"))?;
        device.set_memory(Arc::clone(ram)).map_err(|error| {
            Failure::new(format!("Device {} cannot be plugged: {error}", device.name()), libc::EIO)
        })?;
        if !parts.awake {
            device.pause();
        }
        let outcome = slot.fill(&parts.vm, Arc::clone(&device));
        if outcome.is_err() {
            parts.dispose(&device);
        }
        outcome
    }

    /// Takes the device out of a slot: reset, without guest memory, its interrupt and doorbells disconnected.
    ///
    /// # Errors
    /// ENOENT: no such slot, or an empty one; EBUSY: a driver of a guest that has not come to its end has it.
    pub fn unplug(&self, index: u32) -> Result<Arc<MmioDevice>> {
        let parts = self.parts();
        let slot = parts.slot(index)?;
        let Some(device) = slot.device() else {
            return Err(Failure::new(format!("Slot {index} is empty"), libc::ENOENT));
        };
        if slot.is_driven() && parts.loaded && !self.hub.gate.has_ended() {
            let name = device.name();
            return Err(Failure::new(
                format!("The guest has a driver for device {name}: unbind it first"),
                libc::EBUSY,
            ));
        }
        if slot.empty(&parts.vm).is_some() {
            parts.dispose(&device);
        }
        Ok(device)
    }

    /// Makes the vCPUs and their threads, which stand still.
    ///
    /// # Errors
    /// EEXIST: they are there; what KVM says.
    pub fn add_cpus(&self) -> Result<()> {
        let mut parts = self.parts();
        parts.still_open()?;
        if parts.vm.ram().is_none() || parts.platform.is_none() {
            return Err(out_of_order("Machine has no RAM or platform devices yet: add them first"));
        }
        let MachineConfig { num_cpus, threads_per_core, .. } = self.config;
        let model = CpuModel::new(parts.vm.kvm(), parts.vm.fd(), Topology::new(num_cpus, threads_per_core)?)?;
        let fds = parts.vm.create_vcpus(num_cpus)?;
        for (fd, index) in fds.iter().zip(0..) {
            arch::configure_vcpu(fd, index, &model)?;
        }
        let buses = Arc::new(std::mem::take(&mut parts.buses));
        parts.vcpus = Some(Vcpus::start(&parts.vm, fds, &self.hub, &buses)?);
        parts.model = Some(model);
        Ok(())
    }

    /// Puts kernel, initrd, command line and firmware tables into RAM, every vCPU to its power-on state, and the
    /// first one to the kernel's entry.
    ///
    /// # Errors
    /// EINVAL: a boot is loaded already, or the files are no kernel or do not fit.
    pub fn load(&self, boot: &Boot) -> Result<()> {
        let mut parts = self.parts();
        if parts.loaded {
            return Err(out_of_order("Machine has a kernel already: reset it first"));
        }
        let (Some(vcpus), Some(model), Some(platform), Some(ram)) =
            (&parts.vcpus, &parts.model, &parts.platform, parts.vm.ram())
        else {
            return Err(out_of_order("Machine has no vCPUs yet: add them first"));
        };
        let place = |slot: &Arc<Slot>| {
            let SlotConfig { index, guest_addr, gsi } = *slot.config();
            SlotPlace { index, guest_addr, gsi }
        };
        let slots = parts.slots.values().map(place).collect();
        let board = Board { num_cpus: self.config.num_cpus, slots, ..platform.board.clone() };
        let entry = arch::load(ram, &board, boot)?;
        vcpus.each(|index, fd| {
            arch::reset_vcpu(fd, index, model)?;
            if index == 0 { arch::enter(fd, &entry) } else { Ok(()) }
        })?;
        parts.loaded = true;
        Ok(())
    }

    /// Lets devices and vCPUs go on.
    ///
    /// # Errors
    /// EINVAL: nothing is loaded, or the guest has come to an end.
    pub fn resume(&self) -> Result<()> {
        let mut parts = self.parts();
        let Some(vcpus) = parts.vcpus.as_ref().filter(|_| parts.loaded) else {
            return Err(out_of_order("Machine has no kernel yet: load one first"));
        };
        self.hub.gate.check()?;
        if !parts.awake {
            parts.devices().for_each(|device| device.unpause());
        }
        vcpus.release()?;
        parts.awake = true;
        Ok(())
    }

    /// Returns when no vCPU is in the guest and no device touches guest memory.
    ///
    /// # Errors
    /// ETIMEDOUT: a vCPU or a device did not come to rest in time; the machine goes on.
    pub fn pause(&self, timeout: Duration) -> Result<()> {
        let mut parts = self.parts();
        let late = |what: &str| {
            let text = format!(
                "{what} did not come to rest within {timeout:?}: machine {} goes on",
                self.config.name
            );
            Err(Failure::new(text, libc::ETIMEDOUT))
        };
        let deadline = Instant::now() + timeout.min(FOREVER);
        if let Some(vcpus) = &parts.vcpus
            && !vcpus.park(Some(deadline))
        {
            return late("vCPU");
        }
        if !parts.awake {
            return Ok(());
        }
        let mut paused = Vec::new();
        for device in parts.devices() {
            if !device.pause_before(deadline) {
                paused.iter().for_each(|device: &Arc<MmioDevice>| device.unpause());
                // Refused after an end, where there is nobody to let go.
                let _ = parts.vcpus.as_ref().map(Vcpus::release);
                return late(&format!("Device {}", device.name()));
            }
            paused.push(device);
        }
        parts.awake = false;
        Ok(())
    }

    /// Everything to power-on, and RAM to zeros. A boot has to be loaded again.
    ///
    /// # Errors
    /// EBUSY: the machine runs; what KVM says.
    pub fn reset(&self) -> Result<()> {
        let mut parts = self.parts();
        if self.hub.gate.is_open() {
            return Err(Failure::new("Machine runs: pause it before a reset", libc::EBUSY));
        }
        if let Some(vcpus) = &parts.vcpus {
            // After an end they are on their way.
            vcpus.park(None);
        }
        let awake = std::mem::take(&mut parts.awake);
        for device in parts.devices() {
            device.reset();
            if awake {
                device.pause();
            }
        }
        if let Some(platform) = &parts.platform {
            platform.reset();
        }
        parts.vm.interrupts().reset()?;
        if let Some(ram) = parts.vm.ram() {
            memory::clear(ram)?;
        }
        parts.loaded = false;
        self.hub.forget();
        Ok(())
    }

    /// Starts or ends the record of pages that the guest writes. Devices' writes are not in it.
    ///
    /// # Errors
    /// What KVM says.
    pub fn set_dirty_log(&self, on: bool) -> Result<()> {
        self.parts().vm.set_dirty_log(on)
    }

    /// The pages written since the last call, one bit each, for every region of RAM.
    ///
    /// # Errors
    /// EINVAL: the record is off.
    pub fn take_dirty_log(&self) -> Result<Vec<Vec<u64>>> {
        self.parts().vm.take_dirty_log()
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// EINVAL: there is none yet.
    pub fn power_button(&self) -> Result<()> {
        self.parts().platform()?.power.press_button();
        Ok(())
    }

    /// Gives the VM a new generation, and tells the guest's kernel.
    ///
    /// # Errors
    /// EINVAL: no RAM or platform devices yet.
    pub fn set_generation(&self, guid: &[u8; 16]) -> Result<()> {
        let parts = self.parts();
        let platform = parts.platform()?;
        let ram = parts.vm.ram().ok_or_else(|| out_of_order("Machine has no RAM yet: add memory first"))?;
        let addr = platform.board.generation_addr;
        ram.write_slice(guid, GuestAddress(addr))
            .map_err(|_| Failure::refused(format!("Generation at {addr:#x} lies outside of RAM")))?;
        platform.power.generation_changed();
        Ok(())
    }

    /// The thread of each vCPU, by index.
    pub fn cpus(&self) -> Vec<libc::pid_t> {
        self.parts().vcpus.as_ref().map(Vcpus::threads).unwrap_or_default()
    }

    /// Counters by name: exits of all vCPUs together, and what was lost.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let parts = self.parts();
        let mut metrics = parts.vcpus.as_ref().map(Vcpus::counters).unwrap_or_default();
        metrics.push(("coalesced_writes", parts.vm.interrupts().coalesced_writes()));
        let serial = parts.platform.as_ref().and_then(|platform| platform.serial.as_ref());
        if let Some(serial) = serial {
            metrics.push(("serial_dropped", serial.dropped()));
        }
        metrics
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        parts.vcpus = None;
        for slot in parts.slots.values() {
            if let Some(device) = slot.abandon() {
                parts.dispose(&device);
            }
        }
    }
}

impl Parts {
    /// Buses can still be filled.
    fn still_open(&self) -> Result<()> {
        match self.vcpus {
            None => Ok(()),
            Some(_) => Err(Failure::new("Machine has its vCPUs already: nothing can be added", libc::EEXIST)),
        }
    }

    fn slot(&self, index: u32) -> Result<&Arc<Slot>> {
        self.slots.get(&index).ok_or_else(|| Slot::missing(index))
    }

    fn platform(&self) -> Result<&Platform> {
        self.platform
            .as_ref()
            .ok_or_else(|| out_of_order("Machine has no platform devices yet: add them first"))
    }

    fn devices(&self) -> impl Iterator<Item = Arc<MmioDevice>> {
        self.slots.values().filter_map(|slot| slot.device())
    }

    /// A device leaves the machine as it came: as after power-on, awake, without guest memory.
    fn dispose(&self, device: &MmioDevice) {
        device.release();
        if !self.awake {
            device.unpause();
        }
    }
}
