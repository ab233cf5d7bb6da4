//! The block device core.

use std::io;
use std::sync::Arc;

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, GuestBuffers, Progress, RING_FEATURES,
    RunningRing,
};

use super::backend::Disk;
use super::metrics::BlockMetrics;
use super::queue::{self, HEADER_LEN, ID_LEN, MAX_RANGE_SECTORS, MAX_RANGES, Request, SECTOR, Status};
use super::state;

const DEVICE_TYPE: u32 = 2;
const REQUEST_QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 256;
const CONFIG_LEN: u32 = 60;

/// Feature bits (virtio 1.2, 5.2.3).
const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
const VIRTIO_BLK_F_RO: u64 = 1 << 5;
const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;

/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
const FLAG_UNMAP: u32 = 1;

/// What a block device is told.
#[derive(Debug)]
pub struct BlockConfig {
    /// The disk.
    pub disk: Disk,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Identification, at most 20 bytes.
    pub serial: String,
}

/// The block device.
pub struct Block {
    info: DeviceInfo,
    config: BlockConfig,
    chain: Chain,
    metrics: Arc<BlockMetrics>,
}

impl Block {
    /// A device on the configured disk.
    ///
    /// # Errors
    /// The serial is too long.
    pub fn new(config: BlockConfig) -> io::Result<Self> {
        if config.serial.len() > ID_LEN {
            let text = format!("Serial {:?} has more than {ID_LEN} bytes", config.serial);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut features = RING_FEATURES | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH;
        features |=
            if config.readonly { VIRTIO_BLK_F_RO } else { VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES };
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "block",
                features,
                queue_sizes: vec![QUEUE_SIZE],
                config_len: CONFIG_LEN,
            },
            config,
            chain: Chain::new(),
            metrics: Arc::default(),
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Carries a request out; returns its answer and how many data bytes were written to the guest.
    fn carry_out(&self, ring: &RunningRing<'_>, chain: &Chain, request: Request) -> (Status, u32) {
        let outcome = match request {
            Request::Read { sector, len } => self.read(ring, chain, sector, len),
            Request::Write { .. } | Request::Discard { .. } | Request::WriteZeroes { .. }
                if self.config.readonly =>
            {
                Err(io::ErrorKind::ReadOnlyFilesystem.into())
            }
            Request::Write { sector, len } => self.write(ring, chain, sector, len),
            Request::Flush => {
                BlockMetrics::add(&self.metrics.flushes, 1);
                self.config.disk.flush().map(|()| 0)
            }
            Request::Identify => self.identify(ring, chain),
            Request::Discard { ranges } => self.ranges(ring, chain, ranges, |disk, offset, len, flags| {
                if flags != 0 { Err(io::ErrorKind::Unsupported.into()) } else { disk.discard(offset, len) }
            }),
            Request::WriteZeroes { ranges } => {
                self.ranges(ring, chain, ranges, |disk, offset, len, flags| {
                    if flags & !FLAG_UNMAP != 0 {
                        Err(io::ErrorKind::Unsupported.into())
                    } else {
                        disk.write_zeroes(offset, len, flags & FLAG_UNMAP != 0)
                    }
                })
            }
            Request::Unknown => Err(io::ErrorKind::Unsupported.into()),
            Request::Malformed => Err(io::ErrorKind::InvalidInput.into()),
        };
        match outcome {
            Ok(written) => (Status::Ok, written),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => (Status::Unsupported, 0),
            Err(_) => (Status::IoError, 0),
        }
    }

    /// The byte offset of a range that lies wholly on the disk.
    fn on_disk(&self, sector: u64, sectors: u64) -> io::Result<u64> {
        let end = sector.checked_add(sectors).ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.config.disk.sectors() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The disk's size in bytes fits, so this does.
        Ok(sector * SECTOR)
    }

    fn read(&self, ring: &RunningRing<'_>, chain: &Chain, sector: u64, len: u32) -> io::Result<u32> {
        let start = self.on_disk(sector, u64::from(len) / SECTOR)?;
        let mut done = 0;
        while done < len {
            let mut buffers = GuestBuffers::new(ring.ram());
            buffers.push_writable(chain, done, (len - done) as usize).map_err(io::Error::other)?;
            match buffers.read_file_at(self.config.disk.fd(), file_offset(start, done)?) {
                // The file became shorter behind our back.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count as u32,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        BlockMetrics::add(&self.metrics.read_bytes, u64::from(len));
        Ok(len)
    }

    fn write(&self, ring: &RunningRing<'_>, chain: &Chain, sector: u64, len: u32) -> io::Result<u32> {
        let start = self.on_disk(sector, u64::from(len) / SECTOR)?;
        let mut done = 0;
        while done < len {
            let mut buffers = GuestBuffers::new(ring.ram());
            buffers
                .push_readable(chain, HEADER_LEN + done, (len - done) as usize)
                .map_err(io::Error::other)?;
            match buffers.write_file_at(self.config.disk.fd(), file_offset(start, done)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count as u32,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        BlockMetrics::add(&self.metrics.written_bytes, u64::from(len));
        Ok(0)
    }

    fn identify(&self, ring: &RunningRing<'_>, chain: &Chain) -> io::Result<u32> {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(self.config.serial.bytes()) {
            *to = from;
        }
        ring.write(chain, 0, &id).map_err(io::Error::other)?;
        Ok(ID_LEN as u32)
    }

    fn ranges(
        &self,
        ring: &RunningRing<'_>,
        chain: &Chain,
        count: u32,
        act: fn(&Disk, u64, u64, u32) -> io::Result<()>,
    ) -> io::Result<u32> {
        for index in 0..count {
            let range = queue::range(ring, chain, index).ok_or(io::ErrorKind::InvalidInput)?;
            if range.sectors > MAX_RANGE_SECTORS {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let offset = self.on_disk(range.sector, u64::from(range.sectors))?;
            if range.sectors > 0 {
                act(&self.config.disk, offset, u64::from(range.sectors) * SECTOR, range.flags)?;
            }
        }
        Ok(0)
    }

    fn serve(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let Some(mut ring) = io.ring(REQUEST_QUEUE) else { return Ok(Progress::Idle) };
        ring.suppress_kicks()?;
        let mut chain = std::mem::take(&mut self.chain);
        for _ in 0..QUEUE_SIZE {
            if !ring.pop(&mut chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                self.chain = chain;
                return Ok(Progress::Idle);
            }
            let written = match queue::parse(&ring, &chain) {
                Some(request) => {
                    let (status, written) = self.carry_out(&ring, &chain, request);
                    let last = chain.writable_len() - 1;
                    ring.write(&chain, last, &[status as u8]).map_err(|error| ring.fault(error))?;
                    BlockMetrics::add(&self.metrics.errors, u64::from(status != Status::Ok));
                    // The status byte is the last; between it and short data nothing was written.
                    if written == last { written + 1 } else { written.max(1) }
                }
                None => 0,
            };
            BlockMetrics::add(&self.metrics.requests, 1);
            ring.complete(chain.head(), written)?;
            // Each answer at once: the next request may take long.
            ring.notify()?;
        }
        self.chain = chain;
        Ok(Progress::Again)
    }
}

fn file_offset(start: u64, done: u32) -> io::Result<i64> {
    i64::try_from(start + u64::from(done)).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl DeviceCore for Block {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn config(&self) -> ConfigSpace {
        let mut space = Vec::with_capacity(CONFIG_LEN as usize);
        space.extend(self.config.disk.sectors().to_le_bytes());
        space.extend(0u32.to_le_bytes()); // size_max: not offered
        space.extend((u32::from(QUEUE_SIZE) - 2).to_le_bytes()); // seg_max: all but header and status
        space.extend([0; 4]); // geometry: not offered
        space.extend((SECTOR as u32).to_le_bytes()); // blk_size
        space.extend([0; 8]); // topology: not offered
        space.extend([0; 4]); // writeback, unused, num_queues: not offered
        space.extend(MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
        space.extend(MAX_RANGES.to_le_bytes()); // max_discard_seg
        space.extend(8u32.to_le_bytes()); // discard_sector_alignment: a page
        space.extend(MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        space.extend(MAX_RANGES.to_le_bytes()); // max_write_zeroes_seg
        space.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        ConfigSpace::new(space)
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, _queue: u16) -> Result<Progress, DeviceFault> {
        self.serve(io)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        self.serve(io)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {}

    fn save(&self) -> Vec<u8> {
        state::save(self.config.disk.sectors())
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        // A driver never expects its disk to have shrunk or grown while it slept.
        if state::restore(record)? != self.config.disk.sectors() {
            return Err(RecordError::Value("capacity of the disk"));
        }
        Ok(())
    }
}
