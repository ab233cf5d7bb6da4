//! The fs device core.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES,
    Ready, RunningRing, SaveObstacle,
};

use super::backend::{CachePolicy, HostFs};
use super::metrics::FsMetrics;
use super::pool::{Done, Job, Pool};
use super::queue::{self, Glance};
use super::reply::Reply;
use super::server::{Exchange, Patience, Server, Verdict};
use super::state;
use super::window::Window;
use super::wire::Opcode;
use crate::timer::Timer;

const DEVICE_TYPE: u32 = 26;
const QUEUE_SIZE: u16 = 1024;
const MAX_REQUEST_QUEUES: u16 = 64;
/// Length of the tag field (virtio 1.2, 5.11.4).
const TAG_LEN: usize = 36;
const CONFIG_LEN: u32 = 40;
const POOL_READY: u64 = 0;
const FORGOTTEN: u64 = 1;
const HIPRIO_QUEUE: u16 = 0;

/// Nobody waits for a FORGET: the guest is told of it together with the next answer, of many at once, or
/// after this time.
const FORGET_DELAY: Duration = Duration::from_millis(2);
const MANY_FORGETS: u32 = 64;

/// More data than this are not moved here while other requests wait.
const BIG: u32 = 256 << 10;
/// A request that took longer than this waited for something.
const SLOW: Duration = Duration::from_micros(500);
/// So many requests after a slow one go to the pool if others wait.
const WARY: u32 = 32;

/// What an fs device is told.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
    /// Queues for requests, beside the one for those that must not wait. At least one.
    pub request_queues: u16,
    /// Threads for requests that may take long; none means that one waits for the other.
    pub threads: usize,
    /// As the host half's.
    pub cache: CachePolicy,
    /// The guest may keep written data and write them back late. The host's programs see them late.
    pub writeback: bool,
    /// The guest checks POSIX ACLs.
    pub posix_acl: bool,
    /// Shared memory of the transport, into which the guest may have files mapped (DAX). Given to one device
    /// only; without it the guest is offered nothing of the kind.
    pub window: Option<Arc<dyn Window>>,
}

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            tag: String::new(),
            request_queues: 1,
            threads: std::thread::available_parallelism().map_or(2, |count| count.get().min(4)),
            cache: CachePolicy::Auto,
            writeback: false,
            posix_acl: false,
            window: None,
        }
    }
}

/// The fs device.
pub struct Fs {
    info: DeviceInfo,
    config: ConfigSpace,
    server: Arc<Server>,
    pool: Pool,
    /// Whether the thread that runs this has the credentials that the host half wants.
    prepared: Option<io::Result<()>>,
    chain: Chain,
    request: Vec<u8>,
    reply: Reply,
    done: Vec<Done>,
    /// Buffers for requests that go to the pool.
    spare: Vec<(Chain, Vec<u8>)>,
    wary: u32,
    /// FORGETs that the guest was not told of, and when it will be.
    forgotten: u32,
    forget_timer: Timer,
    /// The mounted guest belongs to the driver that started the queues last.
    driver_mounted: bool,
}

impl Fs {
    /// A device on `host`.
    ///
    /// # Errors
    /// A tag or number of queues that cannot be; no thread or descriptor to be had.
    pub fn new(config: FsConfig, host: Arc<dyn HostFs>) -> io::Result<Self> {
        let refused = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if config.tag.is_empty() || config.tag.len() > TAG_LEN || config.tag.contains('\0') {
            return refused(format!("Tag {:?} does not have 1 to {TAG_LEN} bytes", config.tag));
        }
        if !(1..=MAX_REQUEST_QUEUES).contains(&config.request_queues) {
            return refused(format!("{} request queues are not 1 to 64", config.request_queues));
        }
        let mut space = config.tag.clone().into_bytes();
        space.resize(TAG_LEN, 0);
        space.extend(u32::from(config.request_queues).to_le_bytes());
        let info = DeviceInfo {
            device_type: DEVICE_TYPE,
            name: "fs",
            features: RING_FEATURES,
            queue_sizes: vec![QUEUE_SIZE; usize::from(config.request_queues) + 1],
            config_len: CONFIG_LEN,
        };
        let (threads, name) = (config.threads, config.tag.clone());
        let server = Arc::new(Server::new(config, host));
        Ok(Self {
            info,
            config: ConfigSpace::new(space),
            pool: Pool::new(&name, threads, &server)?,
            server,
            prepared: None,
            chain: Chain::new(),
            request: Vec::with_capacity(4096),
            reply: Reply::new(),
            done: Vec::new(),
            spare: Vec::new(),
            wary: 0,
            forgotten: 0,
            forget_timer: Timer::new()?,
            driver_mounted: false,
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<FsMetrics> {
        Arc::clone(&self.server.metrics)
    }

    fn serve(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        match io.ring(queue) {
            Some(mut ring) => ring.suppress_kicks()?,
            None => return Ok(Progress::Idle),
        }
        // Part of a ring at a time, so that FORGETs and commands are not kept waiting by a busy guest.
        for _ in 0..64 {
            let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
            if !ring.pop(&mut self.chain)? {
                self.notify(io, queue)?;
                let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
                if ring.allow_kicks()? {
                    continue;
                }
                return Ok(Progress::Idle);
            }
            let glance =
                queue::load(ring.ram(), &self.chain, &mut self.request).map_err(|error| ring.fault(error))?;
            if self.take(&mut ring, queue, glance)? {
                self.notify(io, queue)?;
            }
        }
        self.notify(io, queue)?;
        Ok(Progress::Again)
    }

    /// Tells the guest of what is complete on `queue`.
    fn notify(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<(), DeviceFault> {
        if queue == HIPRIO_QUEUE && self.forgotten > 0 && self.forgotten < MANY_FORGETS {
            if !self.forget_timer.armed() {
                self.forget_timer.arm(FORGET_DELAY);
            }
            return Ok(());
        }
        self.notify_forgotten(io)?;
        io.ring(queue).map_or(Ok(()), |mut ring| ring.notify())
    }

    fn notify_forgotten(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceFault> {
        if std::mem::take(&mut self.forgotten) == 0 {
            return Ok(());
        }
        io.ring(HIPRIO_QUEUE).map_or(Ok(()), |mut ring| ring.notify())
    }

    /// Does the request that was loaded, here or elsewhere; whether the guest should hear of it now.
    fn take(&mut self, ring: &mut RunningRing<'_>, queue: u16, glance: Glance) -> Result<bool, DeviceFault> {
        if matches!(glance.opcode, Some(Opcode::Init | Opcode::Destroy)) {
            // Everything else of the old guest comes first, and is done when this begins.
            self.pool.wait_idle();
            self.driver_mounted = true;
        }
        let waiting = ring.has_available();
        let pooled = self.pool.has_room() && self.belongs_elsewhere(glance, waiting);
        if !pooled {
            let patience = if glance.opcode == Some(Opcode::Read) && self.pool.has_room() {
                Patience::CachedOnly
            } else {
                Patience::Waits
            };
            if let Some(written) = self.answer_here(ring, glance, patience)? {
                ring.complete(self.chain.head(), written)?;
                self.forgotten += u32::from(queue == HIPRIO_QUEUE && written == 0);
                // Others that wait are quick; the guest hears of all of them at once.
                return Ok(!waiting);
            }
        }
        let (chain, request) = self.spare.pop().unwrap_or_default();
        let job = Job {
            queue,
            chain: std::mem::replace(&mut self.chain, chain),
            request: std::mem::replace(&mut self.request, request),
            ram: Arc::clone(ring.ram_handle()),
        };
        FsMetrics::add(&self.server.metrics.pooled, 1);
        self.pool.submit(job);
        // The guest may go on with what is ready meanwhile.
        Ok(true)
    }

    /// Whether a request is for the pool: it may take long by its nature, or others wait and it would keep
    /// them waiting.
    fn belongs_elsewhere(&mut self, glance: Glance, waiting: bool) -> bool {
        match glance.opcode {
            Some(
                Opcode::FSync
                | Opcode::FSyncDir
                | Opcode::SyncFs
                | Opcode::FAllocate
                | Opcode::CopyFileRange
                | Opcode::SetLkW,
            ) => true,
            Some(
                Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::Init | Opcode::Destroy,
            )
            | None => false,
            Some(_) if !waiting => false,
            Some(Opcode::Read | Opcode::Write) if glance.data_len > BIG => true,
            Some(_) => {
                let wary = self.wary > 0;
                self.wary = self.wary.saturating_sub(1);
                wary
            }
        }
    }

    /// Answers on this thread; none if the request would wait.
    fn answer_here(
        &mut self,
        ring: &RunningRing<'_>,
        glance: Glance,
        patience: Patience,
    ) -> Result<Option<u32>, DeviceFault> {
        let exchange = Exchange { request: &self.request, ram: ring.ram(), chain: &self.chain };
        let prepared = self.prepared.get_or_insert_with(|| self.server.host.prepare_thread());
        let begun = Instant::now();
        let verdict = match prepared {
            Ok(()) => self.server.answer(exchange, &mut self.reply, patience),
            // Without its credentials in order the thread would act as somebody else.
            Err(_) => self.server.refuse(exchange, &mut self.reply),
        };
        if begun.elapsed() > SLOW && glance.data_len <= BIG {
            self.wary = WARY;
        }
        match verdict.map_err(|error| ring.fault(error))? {
            Verdict::Used(written) => Ok(Some(written)),
            Verdict::WouldWait => Ok(None),
        }
    }

    /// Gives the guest what the pool has done.
    fn complete(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceFault> {
        self.pool.take_done(&mut self.done);
        let mut outcome = Ok(());
        let mut queues = 0u128;
        for done in self.done.drain(..) {
            let Done { queue, chain, request, written } = done;
            // A ring that does not run any more has been reset, and the chain with it.
            if let (Some(mut ring), Ok(())) = (io.ring(queue), &outcome) {
                outcome = ring.complete(chain.head(), written);
                queues |= 1 << queue;
            }
            if self.spare.len() < 8 {
                self.spare.push((chain, request));
            }
        }
        outcome?;
        for queue in (0..=MAX_REQUEST_QUEUES).filter(|queue| queues & (1 << queue) != 0) {
            self.notify(io, queue)?;
        }
        Ok(())
    }
}

impl DeviceCore for Fs {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        io.events.add(self.forget_timer.fd(), FORGOTTEN, Interest::Readable)?;
        io.events.add(self.pool.ready_fd(), POOL_READY, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn queue_started(&mut self, _io: &mut DeviceIo<'_>, _queue: u16, resumed: bool) {
        // A guest that mounted since the queues stood still belongs to this driver, whichever of its queues
        // starts now.
        if !resumed && !self.driver_mounted {
            self.server.end();
        }
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        self.serve(io, queue)
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        token: u64,
        _ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        if token == FORGOTTEN {
            self.forget_timer.expired();
            self.notify_forgotten(io)?;
        } else {
            self.complete(io)?;
        }
        Ok(Progress::Idle)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let mut progress = Progress::Idle;
        for queue in 0..self.info.queue_sizes.len() {
            let queue = u16::try_from(queue).unwrap_or(u16::MAX);
            if self.serve(io, queue)? == Progress::Again {
                progress = Progress::Again;
            }
        }
        Ok(progress)
    }

    fn drain(&mut self, io: &mut DeviceIo<'_>) {
        self.pool.wait_idle();
        self.driver_mounted = false;
        // A ring that fails now is found broken at its next use.
        let _ = self.complete(io).and_then(|()| self.notify_forgotten(io));
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        self.server.end();
        self.wary = 0;
        self.forgotten = 0;
        self.forget_timer.disarm();
    }

    fn save_obstacle(&self) -> Option<SaveObstacle> {
        self.server.mounted().then_some(SaveObstacle::MountedShare)
    }

    fn save(&self) -> Vec<u8> {
        state::save(self.server.mounted(), self.server.window_length())
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        state::restore(record, self.server.window_length())
    }
}
