//! The entropy device core.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES, Ready,
};

use super::backend::{Entropy, HostEntropy};
use super::metrics::RngMetrics;
use super::{queue, state};
use crate::bucket::{BucketConfig, TokenBucket};
use crate::timer::Timer;

const DEVICE_TYPE: u32 = 4;
const REQUEST_QUEUE: u16 = 0;
const TIMER: u64 = 0;

/// How the entropy device behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngConfig {
    /// Bytes per second and burst. The default lets a guest seed itself at once and no guest keep a host
    /// CPU busy with it.
    pub limit: BucketConfig,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { limit: BucketConfig { rate: 1 << 20, burst: 1 << 20 } }
    }
}

/// The entropy device.
pub struct Rng {
    info: DeviceInfo,
    source: Box<dyn Entropy>,
    config: RngConfig,
    bucket: TokenBucket,
    timer: Timer,
    chain: Chain,
    metrics: Arc<RngMetrics>,
}

impl Rng {
    /// A device on the host's generator.
    ///
    /// # Errors
    /// No descriptor for its timer.
    pub fn new(config: RngConfig) -> io::Result<Self> {
        Self::with_source(config, Box::new(HostEntropy))
    }

    /// A device on any source.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_source(config: RngConfig, source: Box<dyn Entropy>) -> io::Result<Self> {
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "rng",
                features: RING_FEATURES,
                queue_sizes: vec![64],
                config_len: 0,
            },
            source,
            bucket: TokenBucket::new(config.limit, Instant::now()),
            config,
            timer: Timer::new()?,
            chain: Chain::new(),
            metrics: Arc::default(),
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }

    fn serve(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let Some(mut ring) = io.ring(REQUEST_QUEUE) else { return Ok(Progress::Idle) };
        ring.suppress_kicks()?;
        // One turn of the ring, then others may speak: a guest that refills it for ever starves nobody.
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
            let len = queue::request_len(&self.chain);
            if let Err(wait) = self.bucket.take(u64::from(len), Instant::now()) {
                // The driver keeps its buffer in the ring; the timer brings us back to it.
                ring.unpop();
                self.timer.arm(wait);
                RngMetrics::add(&self.metrics.throttled, 1);
                break;
            }
            let filled = queue::fill(&ring, &self.chain, len, self.source.as_mut())
                .map_err(|error| ring.fault(error))?;
            ring.complete(self.chain.head(), filled)?;
            RngMetrics::add(&self.metrics.requests, 1);
            RngMetrics::add(&self.metrics.bytes, u64::from(filled));
            RngMetrics::add(&self.metrics.failures, u64::from(filled < len));
        }
        ring.notify()?;
        Ok(Progress::Idle)
    }
}

impl DeviceCore for Rng {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        io.events.add(self.timer.fd(), TIMER, Interest::Readable)
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, _queue: u16) -> Result<Progress, DeviceFault> {
        if self.timer.armed() {
            return Ok(Progress::Idle);
        }
        self.serve(io)
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        _token: u64,
        _ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        self.timer.expired();
        self.serve(io)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        self.process_queue(io, REQUEST_QUEUE)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        // The bucket keeps its level: a guest cannot reset its way around the limit.
        self.timer.disarm();
    }

    fn save(&self) -> Vec<u8> {
        state::save()
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        state::restore(record)?;
        self.bucket = TokenBucket::new(self.config.limit, Instant::now());
        Ok(())
    }
}
