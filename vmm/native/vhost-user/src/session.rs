//! The protocol's requests, carried out on the device's worker.
//!
//! Requests that only want an acknowledgement are refused with `InvalidOperation` or `InvalidParam`, and the
//! session goes on; where the front end waits for data, a refusal ends the session (`InvalidMessage`).

use std::fs::File;
use std::os::fd::OwnedFd;

use strato_virtio::{
    DeviceHost, DeviceInfo, MAX_RING_SIZE, RingError, RingLayout, RingStart, Worker, WorkerError,
};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use crate::channel::ChannelRequest;
use crate::memory::MemoryTable;
use crate::notifier::CallNotifier;

/// Device ID of a network device (virtio 1.2, section 5).
const VIRTIO_ID_NET: u32 = 1;

const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

/// What the front end said of one queue so far.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    /// Descriptor table, available ring, used ring, in the front end's addresses.
    addrs: Option<(u64, u64, u64)>,
    next_avail: u16,
    kick: Option<OwnedFd>,
    enabled: bool,
    running: bool,
}

/// One device as a front end sees it. Outlives connections.
pub(crate) struct Session {
    worker: Worker,
    info: DeviceInfo,
    notifier: CallNotifier,
    memory: MemoryTable,
    vrings: Vec<Vring>,
    features: u64,
    protocol_features: u64,
}

impl From<WorkerGone> for Error {
    fn from(_: WorkerGone) -> Self {
        Error::BackendInternalError
    }
}

struct WorkerGone;

impl From<WorkerError> for WorkerGone {
    fn from(_: WorkerError) -> Self {
        Self
    }
}

impl Session {
    pub(crate) fn new(worker: Worker, info: DeviceInfo, notifier: CallNotifier) -> Self {
        let vrings = info.queue_sizes.iter().map(|_| Vring::default()).collect();
        Self {
            worker,
            info,
            notifier,
            memory: MemoryTable::default(),
            vrings,
            features: 0,
            protocol_features: 0,
        }
    }

    fn call<T: Send + 'static>(&self, call: impl FnOnce(&mut DeviceHost) -> T + Send + 'static) -> Result<T> {
        self.worker.call(call).map_err(|error| WorkerGone::from(error).into())
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.vrings.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        if vring.running { Err(Error::InvalidOperation("ring is running")) } else { Ok(vring) }
    }

    /// Starts the queue once all that it needs has arrived, in whatever order that was. After a failure the
    /// front end has to give the kick again, so that it can put the rest right first.
    fn try_start(&mut self, index: u32) -> Result<()> {
        let always_enabled = self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        let vring = self.vring(index)?;
        let ready = vring.kick.is_some() && vring.addrs.is_some() && vring.size != 0;
        if vring.running || !ready || !(vring.enabled || always_enabled) {
            return Ok(());
        }
        let started = self.start(index);
        let vring = self.vring(index)?;
        vring.running = started.is_ok();
        if started.is_err() {
            vring.kick = None;
        }
        started
    }

    fn start(&mut self, index: u32) -> Result<()> {
        let vring = self.vring(index)?;
        let (desc, avail, used) = vring.addrs.ok_or(Error::InvalidParam)?;
        let kick = vring.kick.as_ref().ok_or(Error::InvalidParam)?;
        let kick = kick.try_clone().map_err(Error::ReqHandlerError)?;
        let (size, next_avail) = (vring.size, vring.next_avail);
        let layout = RingLayout {
            size,
            desc_table: self.memory.guest_addr(desc)?,
            avail_ring: self.memory.guest_addr(avail)?,
            used_ring: self.memory.guest_addr(used)?,
        };
        let queue = u16::try_from(index).map_err(|_| Error::InvalidParam)?;
        let start = RingStart { queue, layout, next_avail, kick: Some(kick) };
        let started: std::result::Result<(), RingError> = self.call(move |host| host.start_ring(start))?;
        started.map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))
    }

    /// Stops the queue, everything in flight done; afterwards `next_avail` is where it stands.
    fn stop(&mut self, index: u32) -> Result<()> {
        if !self.vring(index)?.running {
            return Ok(());
        }
        let queue = u16::try_from(index).map_err(|_| Error::InvalidParam)?;
        let position = self.call(move |host| host.stop_ring(queue))?;
        let vring = self.vring(index)?;
        vring.running = false;
        vring.next_avail = position.unwrap_or(vring.next_avail);
        Ok(())
    }

    /// Device and session as at the beginning; guest memory stays.
    fn reset(&mut self) -> Result<()> {
        self.call(DeviceHost::reset)?;
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        self.features = 0;
        Ok(())
    }

    /// The front end gave the channel on which the device speaks first; whether it may, and whether it wants to
    /// be answered.
    pub(crate) fn set_channel(&mut self, request: ChannelRequest) -> (bool, bool) {
        let agreed = |feature: VhostUserProtocolFeatures| self.protocol_features & feature.bits() != 0;
        let accepted = agreed(VhostUserProtocolFeatures::BACKEND_REQ);
        let answer = request.need_reply && agreed(VhostUserProtocolFeatures::REPLY_ACK);
        if accepted {
            self.notifier.set_channel(Some(request.channel));
        }
        (accepted, answer)
    }

    /// The front end is gone. The device lets go of its memory and descriptors and waits for the next one;
    /// rings remember where they were.
    pub(crate) fn disconnected(&mut self) {
        // A worker that has ended holds no memory any more.
        let _ = self.call(DeviceHost::forget_memory);
        self.notifier.clear();
        self.memory = MemoryTable::default();
        self.protocol_features = 0;
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.info.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features == self.features {
            return Ok(());
        }
        if self.vrings.iter().any(|vring| vring.running) {
            return Err(Error::InvalidOperation("features of a running device"));
        }
        // QEMU passes on what the driver accepted from QEMU itself too (RING_RESET, ANY_LAYOUT, ...): those
        // bits are QEMU's business and mean nothing to the ring, so they are dropped, not refused.
        let accepted = features & self.info.features;
        if !self.call(move |host| host.set_features(accepted))? {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let (memory, ram) = MemoryTable::map(regions, files)?;
        self.memory = memory;
        let moved = self.call(move |host| host.set_memory(ram))?;
        for index in 0..self.vrings.len() {
            let queue = u16::try_from(index).map_err(|_| Error::InvalidParam)?;
            let running = self.call(move |host| host.ring_running(queue))?;
            if let Some(vring) = self.vrings.get_mut(index) {
                vring.running = running;
            }
        }
        moved.map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(Error::InvalidParam);
        }
        self.stopped_vring(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addrs = Some((descriptor, available, used));
        if self.vring(index)?.addrs != addrs {
            self.stopped_vring(index)?.addrs = addrs;
        }
        self.try_start(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let next_avail = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.stopped_vring(index)?.next_avail = next_avail;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop(index).map_err(|_| Error::InvalidMessage)?;
        let vring = self.vring(index).map_err(|_| Error::InvalidMessage)?;
        vring.kick = None;
        Ok(VhostUserVringState::new(index, u32::from(vring.next_avail)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        // Without a descriptor the ring would have to be polled.
        let kick = fd.ok_or(Error::InvalidOperation("a ring without a kick descriptor"))?;
        self.stop(index)?;
        self.vring(index)?.kick = Some(kick.into());
        self.try_start(index)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?;
        self.notifier.set_call(usize::from(index), fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?;
        self.notifier.set_error(usize::from(index), fd);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        // Front ends keep the configuration of a network device themselves, and QEMU complains of one that is
        // offered.
        let config = if self.info.device_type == VIRTIO_ID_NET {
            VhostUserProtocolFeatures::empty()
        } else {
            VhostUserProtocolFeatures::CONFIG
        };
        Ok(VhostUserProtocolFeatures::MQ
            | config
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        if enable { self.try_start(index) } else { self.stop(index) }
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = self.call(|host| host.config())?;
        config.get(offset, size).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let data = buf.to_vec();
        let inside = self.call(move |host| host.write_config(offset, &data))?;
        if inside { Ok(()) } else { Err(Error::InvalidParam) }
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(NOT_OFFERED)
    }

    fn add_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion, _fd: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
