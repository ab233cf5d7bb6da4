//! The console device core.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES,
    Ready,
};

use super::backend::PortConfig;
use super::control::ConsoleControl;
use super::metrics::ConsoleMetrics;
use super::port::{Due, Port, next_message, take_message};
use super::queue::{CHUNK, Message};
use super::state::{self, Saved};

const DEVICE_TYPE: u32 = 3;

/// Feature bits (virtio 1.2, 5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u64 = 1 << 0;
const VIRTIO_CONSOLE_F_MULTIPORT: u64 = 1 << 1;
const VIRTIO_CONSOLE_F_EMERG_WRITE: u64 = 1 << 2;

/// Length of the configuration, and where the emergency character is written in it.
const CONFIG_LEN: u32 = 12;
const EMERG_WR: u32 = 8;

/// Queues (5.3.2): the first port's, then the control queues, then two for each further port.
const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;

/// Most ports; Linux numbers its queues with 16 bits and nobody has more terminals.
pub const MAX_PORTS: usize = 31;
const MAX_NAME: usize = 64;

/// Tokens: two for each port, then the control handle's.
const CONTROL_TOKEN: u64 = 2 * MAX_PORTS as u64;

/// What a console device is told.
#[derive(Debug)]
pub struct ConsoleConfig {
    /// At least one port.
    pub ports: Vec<PortConfig>,
    /// Columns and rows of the terminal behind the first port.
    pub size: (u16, u16),
}

/// The console device.
pub struct Console {
    info: DeviceInfo,
    ports: Vec<Port>,
    size: (u16, u16),
    control: ConsoleControl,
    multiport: bool,
    chain: Chain,
    chunk: Vec<u8>,
    metrics: Arc<ConsoleMetrics>,
}

fn rx_queue(port: usize) -> u16 {
    let pair = if port == 0 { 0 } else { port + 1 };
    u16::try_from(2 * pair).unwrap_or(u16::MAX)
}

fn port_of(queue: u16) -> Option<usize> {
    match queue / 2 {
        0 => Some(0),
        1 => None,
        pair => Some(usize::from(pair) - 1),
    }
}

impl Console {
    /// A device with the configured ports.
    ///
    /// # Errors
    /// No port or too many, a name that is too long, or no descriptors.
    pub fn new(config: ConsoleConfig) -> io::Result<Self> {
        let refused = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let count = config.ports.len();
        if !(1..=MAX_PORTS).contains(&count) {
            return refused(format!("A console has 1 to {MAX_PORTS} ports, not {count}"));
        }
        if let Some(port) = config.ports.iter().find(|port| port.name.len() > MAX_NAME) {
            return refused(format!("Port name {:?} has more than {MAX_NAME} bytes", port.name));
        }
        let mut features = RING_FEATURES | VIRTIO_CONSOLE_F_SIZE | VIRTIO_CONSOLE_F_EMERG_WRITE;
        let mut queues = 2;
        if count > 1 {
            features |= VIRTIO_CONSOLE_F_MULTIPORT;
            queues = 2 * (count + 1);
        }
        let mut ports = Vec::with_capacity(count);
        for (index, port) in config.ports.into_iter().enumerate() {
            ports.push(Port::new(port, index == 0)?);
        }
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "console",
                features,
                queue_sizes: vec![64; queues],
                config_len: CONFIG_LEN,
            },
            ports,
            size: config.size,
            control: ConsoleControl::new()?,
            multiport: false,
            chain: Chain::new(),
            chunk: vec![0; CHUNK],
            metrics: Arc::default(),
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<ConsoleMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The handle for changes while the device runs.
    pub fn control(&self) -> ConsoleControl {
        self.control.clone()
    }

    /// Guest to host: everything is taken at once, whoever reads it.
    fn transmit(&mut self, io: &mut DeviceIo<'_>, index: usize) -> Result<Progress, DeviceFault> {
        let Some(port) = self.ports.get_mut(index) else { return Ok(Progress::Idle) };
        let Some(mut ring) = io.ring(rx_queue(index) + 1) else { return Ok(Progress::Idle) };
        ring.suppress_kicks()?;
        let mut budget = ring.size();
        loop {
            if budget == 0 {
                ring.notify()?;
                return Ok(Progress::Again);
            }
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                break;
            }
            budget -= 1;
            let len = self.chain.readable_len();
            let mut offset = 0;
            while offset < len {
                let now = usize::try_from(len - offset).unwrap_or(CHUNK).min(CHUNK);
                let data = self.chunk.get_mut(..now).unwrap_or_default();
                ring.read(&self.chain, offset, data).map_err(|error| ring.fault(error))?;
                ConsoleMetrics::add(&self.metrics.dropped_bytes, port.host.send(data));
                ConsoleMetrics::add(&self.metrics.tx_bytes, now);
                offset += u32::try_from(now).unwrap_or(len);
            }
            ring.complete(self.chain.head(), 0)?;
        }
        ring.notify()?;
        port.note_host();
        Ok(Progress::Idle)
    }

    /// Host to guest, as far as the guest has room. A port that no program of the guest has open waits.
    fn receive(&mut self, io: &mut DeviceIo<'_>, index: usize) -> Result<Progress, DeviceFault> {
        let open = !self.multiport || self.ports.get(index).is_some_and(|port| port.driver.guest_open);
        let Some(port) = self.ports.get_mut(index) else { return Ok(Progress::Idle) };
        let Some(mut ring) = io.ring(rx_queue(index)) else { return Ok(Progress::Idle) };
        let mut budget = ring.size();
        while open && port.host.may_have_input() {
            if budget == 0 {
                ring.notify()?;
                return Ok(Progress::Again);
            }
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                break;
            }
            budget -= 1;
            let room = usize::try_from(self.chain.writable_len()).unwrap_or(CHUNK).min(CHUNK);
            if room == 0 {
                ConsoleMetrics::add(&self.metrics.refused, 1);
                ring.complete(self.chain.head(), 0)?;
                continue;
            }
            let count = port.host.receive(self.chunk.get_mut(..room).unwrap_or_default());
            if count == 0 {
                ring.unpop();
                break;
            }
            let data = self.chunk.get(..count).unwrap_or_default();
            ring.write(&self.chain, 0, data).map_err(|error| ring.fault(error))?;
            ring.complete(self.chain.head(), u32::try_from(count).unwrap_or(u32::MAX))?;
            ConsoleMetrics::add(&self.metrics.rx_bytes, count);
        }
        ring.notify()?;
        port.note_host();
        Ok(Progress::Idle)
    }

    /// Control messages of the guest.
    fn hear(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let Some(mut ring) = io.ring(CONTROL_TX) else { return Ok(Progress::Idle) };
        ring.suppress_kicks()?;
        let mut budget = ring.size();
        loop {
            if budget == 0 {
                ring.notify()?;
                return Ok(Progress::Again);
            }
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                break;
            }
            budget -= 1;
            let message = Message::read(&ring, &self.chain).map_err(|error| ring.fault(error))?;
            ring.complete(self.chain.head(), 0)?;
            ConsoleMetrics::add(&self.metrics.control_messages, 1);
            if !message.is_some_and(|message| take_message(&mut self.ports, message)) {
                ConsoleMetrics::add(&self.metrics.refused, 1);
            }
        }
        ring.notify()?;
        Ok(Progress::Idle)
    }

    /// Control messages for the guest, as far as it has room.
    fn tell(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        if !self.multiport {
            return Ok(Progress::Idle);
        }
        let Some(mut ring) = io.ring(CONTROL_RX) else { return Ok(Progress::Idle) };
        let mut budget = ring.size();
        while let Some((index, bytes)) = next_message(&self.ports, self.size) {
            if budget == 0 {
                ring.notify()?;
                return Ok(Progress::Again);
            }
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                break;
            }
            budget -= 1;
            if (self.chain.writable_len() as usize) < bytes.len() {
                ConsoleMetrics::add(&self.metrics.refused, 1);
                ring.complete(self.chain.head(), 0)?;
                continue;
            }
            ring.write(&self.chain, 0, &bytes).map_err(|error| ring.fault(error))?;
            ring.complete(self.chain.head(), u32::try_from(bytes.len()).unwrap_or(u32::MAX))?;
            if let Some(port) = self.ports.get_mut(index) {
                port.told();
            }
        }
        ring.notify()?;
        Ok(Progress::Idle)
    }

    fn take_changes(&mut self, io: &DeviceIo<'_>) {
        let Some(size) = self.control.take() else { return };
        self.size = size;
        // With several ports there is a message for it too, but the configuration has changed all the same.
        io.notify_config();
        if let Some(port) = self.ports.first_mut().filter(|_| self.multiport) {
            port.due.resize = port.driver.ready;
        }
    }

    /// Looks at everything: bounded by the rings' sizes, and there are few ports.
    fn serve(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let mut progress = self.hear(io)?;
        for index in 0..self.ports.len() {
            for step in [Self::transmit, Self::receive] {
                if step(self, io, index)? == Progress::Again {
                    progress = Progress::Again;
                }
            }
        }
        if self.tell(io)? == Progress::Again {
            progress = Progress::Again;
        }
        Ok(progress)
    }
}

impl DeviceCore for Console {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        for (port, token) in self.ports.iter().zip((0u64..).step_by(2)) {
            for (fd, token) in [(port.host.input_fd(), token), (port.host.output_fd(), token + 1)] {
                let Some(fd) = fd else { continue };
                match io.events.add(fd, token, Interest::Edges) {
                    // A regular file is always ready.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    other => other?,
                }
            }
        }
        io.events.add(self.control.wake().as_raw_fd(), CONTROL_TOKEN, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        let mut space = Vec::with_capacity(CONFIG_LEN as usize);
        space.extend(self.size.0.to_le_bytes());
        space.extend(self.size.1.to_le_bytes());
        space.extend(u32::try_from(self.ports.len()).unwrap_or(1).to_le_bytes());
        space.extend([0; 4]); // emerg_wr: write only
        ConfigSpace::new(space)
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        // One character, in the low bits of the field, with or without a driver.
        if let (EMERG_WR, Some(character), Some(port)) = (offset, data.first(), self.ports.first_mut()) {
            ConsoleMetrics::add(&self.metrics.dropped_bytes, port.host.send(&[*character]));
            ConsoleMetrics::add(&self.metrics.tx_bytes, 1);
        }
    }

    fn set_features(&mut self, features: u64) {
        self.multiport = features & VIRTIO_CONSOLE_F_MULTIPORT != 0;
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        let progress = match (queue, port_of(queue)) {
            (CONTROL_TX, _) => self.hear(io)?,
            (CONTROL_RX, _) | (_, None) => Progress::Idle,
            (_, Some(index)) if queue % 2 == 1 => self.transmit(io, index)?,
            (_, Some(index)) => self.receive(io, index)?,
        };
        // Whatever was heard may have an answer, or have opened a port.
        if queue == CONTROL_TX {
            for index in 0..self.ports.len() {
                if self.receive(io, index)? == Progress::Again {
                    return Ok(Progress::Again);
                }
            }
        }
        if self.tell(io)? == Progress::Again { Ok(Progress::Again) } else { Ok(progress) }
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        token: u64,
        ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        if token == CONTROL_TOKEN {
            self.take_changes(io);
            return self.tell(io);
        }
        let index = usize::try_from(token / 2).unwrap_or(usize::MAX);
        let Some(port) = self.ports.get_mut(index) else { return Ok(Progress::Idle) };
        if token % 2 == 1 {
            if ready.writable {
                ConsoleMetrics::add(&self.metrics.dropped_bytes, port.host.flush());
            }
            port.note_host();
        } else if ready.readable {
            port.host.input_ready();
            if self.receive(io, index)? == Progress::Again {
                return Ok(Progress::Again);
            }
        }
        self.tell(io)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        self.serve(io)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        self.multiport = false;
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn save(&self) -> Vec<u8> {
        state::save(&Saved { size: self.size, ports: self.ports.iter().map(|port| port.driver).collect() })
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let saved = state::restore(record)?;
        if saved.ports.len() != self.ports.len() {
            return Err(RecordError::Value("number of ports"));
        }
        for (index, (port, driver)) in self.ports.iter_mut().zip(saved.ports).enumerate() {
            port.driver = driver;
            // The host's side and the terminal are others now.
            port.due = Due { resize: driver.ready && index == 0, open: driver.ready, ..Due::default() };
            port.told_open = false;
        }
        Ok(())
    }
}
