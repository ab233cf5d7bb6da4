//! The block device core: configuration, features, life cycle. The work itself is in `serve`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use strato_virtio::record::RecordError;
use strato_virtio::{
    ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES, Ready,
};

use super::backend::{CacheMode, Disk};
use super::control::BlockControl;
use super::engine::{self, Engine, EngineChoice};
use super::metrics::BlockMetrics;
use super::queue::{
    ID_LEN, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZERO_RANGES, MAX_ZERO_SECTORS, SECTOR,
};
use super::serve::{MAX_IN_FLIGHT, Server};
use super::state::{self, Saved};
use crate::limits::{Limiter, Limits};

const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;
const MAX_QUEUES: u16 = 64;
const CONFIG_LEN: u32 = 60;
/// Where the driver writes which kind of cache it wants.
const WRITEBACK_OFFSET: u32 = 32;

/// Feature bits (virtio 1.2, 5.2.3).
const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
const VIRTIO_BLK_F_RO: u64 = 1 << 5;
const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
const VIRTIO_BLK_F_TOPOLOGY: u64 = 1 << 10;
const VIRTIO_BLK_F_CONFIG_WCE: u64 = 1 << 11;
const VIRTIO_BLK_F_MQ: u64 = 1 << 12;
const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;

const ENGINE_TOKEN: u64 = 0;
const TIMER_TOKEN: u64 = 1;
const CONTROL_TOKEN: u64 = 2;

/// What a block device is told.
#[derive(Debug)]
pub struct BlockConfig {
    /// A regular file or a block device, opened for writing unless `readonly`. Byte n of it is byte n of the
    /// disk.
    pub file: File,
    /// What a flush does.
    pub cache: CacheMode,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Identification, at most 20 bytes.
    pub serial: String,
    /// Number of request queues, from 1 on. More than one is of use with a vCPU for each.
    pub num_queues: u16,
    /// Reads and writes together; can be changed later.
    pub limits: Limits,
    /// How requests are carried out.
    pub engine: EngineChoice,
}

impl BlockConfig {
    /// A disk that can be written, with one queue and no limits.
    pub fn new(file: File) -> Self {
        Self {
            file,
            cache: CacheMode::default(),
            readonly: false,
            serial: String::new(),
            num_queues: 1,
            limits: Limits::default(),
            engine: EngineChoice::default(),
        }
    }
}

/// What is left of the configuration once there are a disk and an engine.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) readonly: bool,
    pub(super) serial: String,
    pub(super) num_queues: u16,
    pub(super) limits: Limits,
}

/// The block device.
pub struct Block {
    info: DeviceInfo,
    server: Server,
    control: BlockControl,
    features: u64,
    /// What the driver wrote into the configuration, if it did.
    writeback: Option<bool>,
}

impl Block {
    /// A device on the configured disk.
    ///
    /// # Errors
    /// The serial is too long, the number of queues is impossible, the file is no disk, or the host has not
    /// what the configuration asks for.
    pub fn new(config: BlockConfig) -> io::Result<Self> {
        let refused = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if config.serial.len() > ID_LEN {
            return refused(format!("Serial {:?} has more than {ID_LEN} bytes", config.serial));
        }
        if !(1..=MAX_QUEUES).contains(&config.num_queues) {
            return refused(format!("A disk has 1 to {MAX_QUEUES} queues, not {}", config.num_queues));
        }
        let disk = Disk::new(config.file, config.cache)?;
        let engine = engine::create(config.engine, &disk, MAX_IN_FLIGHT)?;
        let settings = Settings {
            readonly: config.readonly,
            serial: config.serial,
            num_queues: config.num_queues,
            limits: config.limits,
        };
        Self::assemble(settings, disk, engine)
    }

    pub(super) fn assemble(config: Settings, disk: Disk, engine: Box<dyn Engine>) -> io::Result<Self> {
        let control = BlockControl::new(&disk.file, disk.geometry.logical)?;
        let metrics = Arc::new(BlockMetrics::default());
        metrics.uring.store(u64::from(engine.choice() == EngineChoice::Uring), Ordering::Relaxed);
        let mut features = RING_FEATURES
            | VIRTIO_BLK_F_SEG_MAX
            | VIRTIO_BLK_F_BLK_SIZE
            | VIRTIO_BLK_F_TOPOLOGY
            | VIRTIO_BLK_F_FLUSH
            | VIRTIO_BLK_F_CONFIG_WCE;
        features |=
            if config.readonly { VIRTIO_BLK_F_RO } else { VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES };
        if config.num_queues > 1 {
            features |= VIRTIO_BLK_F_MQ;
        }
        let mut server =
            Server::new(disk, engine, Limiter::new(config.limits), usize::from(config.num_queues), metrics)?;
        server.readonly = config.readonly;
        server.serial = config.serial;
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "block",
                features,
                queue_sizes: vec![QUEUE_SIZE; usize::from(config.num_queues)],
                config_len: CONFIG_LEN,
            },
            server,
            control,
            features: 0,
            writeback: None,
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.server.metrics)
    }

    /// The handle for changes while the device runs.
    pub fn control(&self) -> BlockControl {
        self.control.clone()
    }

    /// Whether a write may be answered before it is on the medium (virtio 1.2, 5.2.6.2).
    fn writeback(&self) -> bool {
        self.writeback.unwrap_or(self.features == 0 || self.features & VIRTIO_BLK_F_FLUSH != 0)
    }

    fn settle_durability(&mut self) {
        // A disk that ignores flushes makes no promise that a driver without flushes could rely on.
        self.server.durable = !self.writeback() && self.server.disk.cache != CacheMode::None;
    }

    fn take_changes(&mut self, io: &mut DeviceIo<'_>) {
        let changes = self.control.take();
        if let Some(limits) = changes.limits {
            self.server.set_limits(limits);
        }
        if let Some(sectors) = changes.sectors {
            if sectors < self.server.disk.sectors {
                // What is in flight was admitted by the old size.
                self.server.drain(io);
            }
            if sectors != self.server.disk.sectors {
                self.server.disk.sectors = sectors;
                io.notify_config();
            }
        }
    }
}

impl DeviceCore for Block {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        io.events.add(self.server.engine_fd(), ENGINE_TOKEN, Interest::Readable)?;
        io.events.add(self.server.timer_fd(), TIMER_TOKEN, Interest::Readable)?;
        io.events.add(self.control.wake().as_raw_fd(), CONTROL_TOKEN, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        let disk = &self.server.disk;
        let geometry = disk.geometry;
        let physical_exp = (geometry.physical / geometry.logical).trailing_zeros() as u8;
        let blocks = |bytes: u32| bytes / geometry.logical;
        let mut space = Vec::with_capacity(CONFIG_LEN as usize);
        space.extend(disk.sectors.to_le_bytes());
        space.extend(0u32.to_le_bytes()); // size_max: not offered
        space.extend((u32::from(QUEUE_SIZE) - 2).to_le_bytes()); // seg_max: all but header and status
        space.extend([0; 4]); // geometry: not offered
        space.extend(geometry.logical.to_le_bytes()); // blk_size
        space.extend([physical_exp, 0]); // alignment_offset: none
        space.extend(u16::try_from(blocks(geometry.physical)).unwrap_or(0).to_le_bytes()); // min_io_size
        space.extend(blocks(geometry.optimal).to_le_bytes()); // opt_io_size
        space.extend([u8::from(self.writeback()), 0]);
        space.extend((self.info.queue_sizes.len() as u16).to_le_bytes()); // num_queues
        space.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        space.extend(MAX_DISCARD_RANGES.to_le_bytes());
        space.extend((geometry.physical / SECTOR as u32).to_le_bytes()); // discard_sector_alignment
        space.extend(MAX_ZERO_SECTORS.to_le_bytes());
        space.extend(MAX_ZERO_RANGES.to_le_bytes());
        space.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        ConfigSpace::new(space)
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        if let (WRITEBACK_OFFSET, [value @ (0 | 1)]) = (offset, data) {
            self.writeback = Some(*value == 1);
            self.settle_durability();
        }
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        if features & VIRTIO_BLK_F_CONFIG_WCE == 0 {
            self.writeback = None;
        }
        self.settle_durability();
    }

    fn queue_started(&mut self, _io: &mut DeviceIo<'_>, queue: u16, _resumed: bool) {
        self.server.queue_started(queue);
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        self.server.look_into(queue);
        self.server.work(io)
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        token: u64,
        _ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        match token {
            TIMER_TOKEN => self.server.timer_expired(),
            CONTROL_TOKEN => self.take_changes(io),
            _ => {}
        }
        self.server.work(io)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        self.server.work(io)
    }

    fn drain(&mut self, io: &mut DeviceIo<'_>) {
        self.server.drain(io);
    }

    fn cancel(&mut self, _io: &mut DeviceIo<'_>) {
        self.server.cancel();
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        self.features = 0;
        self.writeback = None;
        self.settle_durability();
        self.server.reset();
    }

    fn save(&self) -> Vec<u8> {
        state::save(Saved { sectors: self.server.disk.sectors, writeback: self.writeback })
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let saved = state::restore(record)?;
        // A driver never expects its disk to have shrunk or grown while it slept.
        if saved.sectors != self.server.disk.sectors {
            return Err(RecordError::Value("capacity of the disk"));
        }
        self.writeback = saved.writeback;
        self.settle_durability();
        Ok(())
    }
}
