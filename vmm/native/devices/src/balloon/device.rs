//! The balloon device core.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES,
    Ready, RunningRing,
};

use super::backend::{Discard, HostDiscard};
use super::control::BalloonControl;
use super::metrics::BalloonMetrics;
use super::queue::{MAX_PAGES, page_count, ranges, read_pages, read_stats};
use super::state::{self, Saved};
use crate::timer::Timer;

const DEVICE_TYPE: u32 = 5;

/// Feature bits (virtio 1.2, 5.5.3). MUST_TELL_HOST is not needed: a page that went back comes again when it is
/// touched, whoever touches it first.
const VIRTIO_BALLOON_F_STATS_VQ: u64 = 1 << 1;
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 1 << 2;
const VIRTIO_BALLOON_F_PAGE_REPORTING: u64 = 1 << 5;

/// Configuration: num_pages, then actual, which the driver writes. What follows belongs to features that are not
/// offered.
const CONFIG_LEN: u32 = 8;
const ACTUAL: usize = 4;

const QUEUE_SIZE: u16 = 64;

/// Pages or ranges of one turn; then others may speak.
const BUDGET: usize = MAX_PAGES;

const TIMER: u64 = 0;
const CONTROL: u64 = 1;

/// What a balloon is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// The guest may take pages back rather than kill a program.
    pub deflate_on_oom: bool,
    /// The guest tells of pages that are free anyway.
    pub reporting: bool,
    /// How often the guest is asked for its statistics. None: it tells them once, when its driver begins.
    pub stats_interval: Option<Duration>,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reporting,
    Nothing,
}

/// Numbers of queues (virtio 1.2, 5.5.2) are read in two ways. The text gives each a number for good: statistics 2,
/// hinting 3, reporting 4. Drivers such as Linux leave out the queues of features that were not settled and count on.
/// As hinting is never offered, no number means two things at once, and both are understood.
fn role(queue: u16, features: u64) -> Role {
    let settled = |feature| features & feature != 0;
    match queue {
        0 => Role::Inflate,
        1 => Role::Deflate,
        2 if settled(VIRTIO_BALLOON_F_STATS_VQ) => Role::Stats,
        2..=4 if settled(VIRTIO_BALLOON_F_PAGE_REPORTING) => Role::Reporting,
        _ => Role::Nothing,
    }
}

/// The balloon device.
pub struct Balloon {
    info: DeviceInfo,
    config: BalloonConfig,
    host: Box<dyn Discard>,
    control: BalloonControl,
    features: u64,
    /// In pages of 4 KiB, like the next: what is in the configuration space.
    target: u32,
    actual: u32,
    /// The driver's buffer of statistics has been read and waits in its queue, until the next are wanted.
    stats_wait: bool,
    timer: Timer,
    chain: Chain,
    raw: Vec<u8>,
    pages: Vec<u32>,
    metrics: Arc<BalloonMetrics>,
}

impl Balloon {
    /// A balloon on the host's kernel.
    ///
    /// # Errors
    /// No descriptors.
    pub fn new(config: BalloonConfig) -> io::Result<Self> {
        Self::with_host(config, Box::new(HostDiscard))
    }

    /// A balloon on anything that takes memory.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_host(config: BalloonConfig, host: Box<dyn Discard>) -> io::Result<Self> {
        let mut features = RING_FEATURES | VIRTIO_BALLOON_F_STATS_VQ;
        if config.deflate_on_oom {
            features |= VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
        }
        let metrics = Arc::default();
        let mut queues = 3;
        if config.reporting {
            features |= VIRTIO_BALLOON_F_PAGE_REPORTING;
            queues = 5;
        }
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "balloon",
                features,
                queue_sizes: vec![QUEUE_SIZE; queues],
                config_len: CONFIG_LEN,
            },
            config,
            host,
            control: BalloonControl::new(&metrics)?,
            features: 0,
            target: 0,
            actual: 0,
            stats_wait: false,
            timer: Timer::new()?,
            chain: Chain::new(),
            raw: Vec::new(),
            pages: Vec::new(),
            metrics,
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<BalloonMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The handle for changes while the device runs.
    pub fn control(&self) -> BalloonControl {
        self.control.clone()
    }

    /// Takes chains until there are none or the budget is spent; `serve` says what each of them cost.
    fn serve(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue: u16,
        serve: fn(&mut Self, &RunningRing<'_>, &mut Option<io::Error>) -> Result<usize, DeviceFault>,
    ) -> Result<Progress, DeviceFault> {
        let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
        ring.suppress_kicks()?;
        let mut progress = Progress::Idle;
        let mut failure = None;
        let mut budget = BUDGET;
        loop {
            if budget == 0 {
                progress = Progress::Again;
                break;
            }
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                break;
            }
            let cost = serve(self, &ring, &mut failure)?;
            budget = budget.saturating_sub(cost.max(1));
            // Given back when the pages are gone, never before: the guest may use them again from then on.
            ring.complete(self.chain.head(), 0)?;
        }
        ring.notify()?;
        if let Some(error) = failure {
            io.report_backend_error(&error);
        }
        Ok(progress)
    }

    fn inflate(
        &mut self,
        ring: &RunningRing<'_>,
        failure: &mut Option<io::Error>,
    ) -> Result<usize, DeviceFault> {
        read_pages(ring, &self.chain, &mut self.raw, &mut self.pages).map_err(|error| ring.fault(error))?;
        let named = page_count(&self.chain);
        let count = self.pages.len();
        BalloonMetrics::add(&self.metrics.refused, (named - count) as u64);
        BalloonMetrics::add(&self.metrics.inflated_pages, count as u64);
        let mut pages = std::mem::take(&mut self.pages);
        for (addr, len) in ranges(&mut pages) {
            self.discard(ring, addr, len, failure);
        }
        self.pages = pages;
        Ok(count)
    }

    fn deflate(&mut self, _: &RunningRing<'_>, _: &mut Option<io::Error>) -> Result<usize, DeviceFault> {
        // The pages come again when they are touched: there is nothing to do, and nothing to look at.
        let count = page_count(&self.chain).min(MAX_PAGES);
        BalloonMetrics::add(&self.metrics.deflated_pages, count as u64);
        Ok(1)
    }

    fn report(
        &mut self,
        ring: &RunningRing<'_>,
        failure: &mut Option<io::Error>,
    ) -> Result<usize, DeviceFault> {
        let chain = std::mem::take(&mut self.chain);
        for span in chain.writable() {
            BalloonMetrics::add(&self.metrics.reported_bytes, span.len.into());
            self.discard(ring, span.guest_addr.0, span.len.into(), failure);
        }
        let count = chain.writable().len();
        self.chain = chain;
        Ok(count)
    }

    fn discard(
        &mut self,
        ring: &RunningRing<'_>,
        guest_addr: u64,
        len: u64,
        failure: &mut Option<io::Error>,
    ) {
        match self.host.discard(ring.ram(), guest_addr, len) {
            Ok(bytes) => BalloonMetrics::add(&self.metrics.discarded_bytes, bytes),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                BalloonMetrics::add(&self.metrics.refused, 1);
            }
            Err(error) => {
                BalloonMetrics::add(&self.metrics.failures, 1);
                failure.get_or_insert(error);
            }
        }
    }

    fn stats_queue(&self) -> Option<u16> {
        (0..5).find(|&queue| role(queue, self.features) == Role::Stats)
    }

    /// Reads statistics that have come. Their buffer goes back into the queue until the next are wanted, so that
    /// the device holds nothing when it is stopped.
    fn hear(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
        while !self.stats_wait {
            if !ring.pop(&mut self.chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                break;
            }
            let stats = read_stats(&ring, &self.chain).map_err(|error| ring.fault(error))?;
            ring.unpop();
            self.stats_wait = true;
            self.control.set_stats(stats);
            BalloonMetrics::add(&self.metrics.stats_updates, 1);
        }
        if let Some(interval) = self.config.stats_interval.filter(|_| !self.timer.armed()) {
            self.timer.arm(interval);
        }
        Ok(Progress::Idle)
    }

    /// Asks for new statistics, by giving the old ones back.
    fn ask(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let Some(queue) = self.stats_queue() else { return Ok(Progress::Idle) };
        let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
        if std::mem::take(&mut self.stats_wait) && ring.pop(&mut self.chain)? {
            ring.complete(self.chain.head(), 0)?;
            ring.notify()?;
        }
        self.hear(io, queue)
    }
}

impl DeviceCore for Balloon {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        io.events.add(self.timer.fd(), TIMER, Interest::Readable)?;
        io.events.add(self.control.wake().as_raw_fd(), CONTROL, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        let mut space = Vec::with_capacity(CONFIG_LEN as usize);
        space.extend(self.target.to_le_bytes());
        space.extend(self.actual.to_le_bytes());
        ConfigSpace::new(space)
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        // In any pieces; num_pages is ours.
        let mut actual = self.actual.to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(place) = at.checked_sub(ACTUAL).and_then(|at| actual.get_mut(at)) {
                *place = *byte;
            }
        }
        self.actual = u32::from_le_bytes(actual);
        self.control.set_actual(self.actual);
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    fn queue_started(&mut self, _io: &mut DeviceIo<'_>, queue: u16, _resumed: bool) {
        if role(queue, self.features) == Role::Stats {
            self.stats_wait = false;
        }
    }

    fn queue_stopped(&mut self, _io: &mut DeviceIo<'_>, queue: u16) {
        if role(queue, self.features) == Role::Stats {
            self.timer.disarm();
        }
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        match role(queue, self.features) {
            Role::Inflate => self.serve(io, queue, Self::inflate),
            Role::Deflate => self.serve(io, queue, Self::deflate),
            Role::Reporting => self.serve(io, queue, Self::report),
            Role::Stats => self.hear(io, queue),
            Role::Nothing => Ok(Progress::Idle),
        }
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        token: u64,
        _ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        if token == TIMER {
            self.timer.expired();
            return self.ask(io);
        }
        let target = self.control.take_target();
        if std::mem::replace(&mut self.target, target) != target {
            io.notify_config();
        }
        Ok(Progress::Idle)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let mut progress = Progress::Idle;
        for queue in (0..).take(self.info.queue_sizes.len()) {
            if self.process_queue(io, queue)? == Progress::Again {
                progress = Progress::Again;
            }
        }
        Ok(progress)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        self.features = 0;
        self.actual = 0;
        self.stats_wait = false;
        self.timer.disarm();
        self.control.forget_driver();
    }

    fn save(&self) -> Vec<u8> {
        state::save(Saved { target: self.target, actual: self.actual })
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let Saved { target, actual } = state::restore(record)?;
        self.target = target;
        self.actual = actual;
        self.control.restore_target(target);
        self.control.set_actual(actual);
        Ok(())
    }
}
