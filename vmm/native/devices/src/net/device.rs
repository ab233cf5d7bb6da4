//! The network device core.

use std::io;
use std::sync::Arc;

use strato_virtio::record::RecordError;
use strato_virtio::{
    ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Interest, Progress, RING_FEATURES, Ready,
};

use super::backend::{MAX_PAIRS, Tap};
use super::control::NetControl;
use super::metrics::NetMetrics;
use super::pair::Pair;
use super::queue::{
    self, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};
use super::receive::{ReceiveRules, Turn};
use super::state::{self, State};
use super::transmit::{TransmitRules, Transmitter};
use crate::limits::{Limiter, Limits};
use crate::timer::Timer;

const DEVICE_TYPE: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;
const CONFIG_LEN: u32 = 12;
/// Smallest MTU of a network that carries IPv4 (RFC 791), and of the specification.
const MIN_MTU: u16 = 68;

/// Bits of the configuration's status field.
const VIRTIO_NET_S_LINK_UP: u16 = 1;
const VIRTIO_NET_S_ANNOUNCE: u16 = 2;

/// Tokens of the descriptors that are not taps; those of taps are their pair's number.
const CONTROL: u64 = 1 << 32;
const RECEIVE_TIMER: u64 = CONTROL + 1;
const TRANSMIT_TIMER: u64 = CONTROL + 2;

/// What a network device is told.
#[derive(Debug)]
pub struct NetConfig {
    /// The tap, one queue of it for each queue pair; 1 to [`MAX_PAIRS`].
    pub taps: Vec<Tap>,
    /// The guest's address, unicast.
    pub mac: [u8; 6],
    /// MTU told to the guest.
    pub mtu: Option<u16>,
    /// Whether the cable is plugged in.
    pub link_up: bool,
    /// Limits of what the guest receives.
    pub receive_limits: Limits,
    /// Limits of what the guest sends.
    pub transmit_limits: Limits,
}

/// The network device.
pub struct Net {
    info: DeviceInfo,
    pub(super) pairs: Vec<Pair>,
    mac: [u8; 6],
    mtu: Option<u16>,
    pub(super) receive_rules: ReceiveRules,
    pub(super) transmit_rules: TransmitRules,
    orders: NetControl,
    pub(super) state: State,
    /// The control queue runs: the driver says how many pairs it uses.
    controlled: bool,
    pub(super) more_control: bool,
    pub(super) metrics: Arc<NetMetrics>,
}

impl Net {
    /// A device on the configured tap.
    ///
    /// # Errors
    /// A number of taps, address or MTU that cannot be, or no descriptors to be had.
    pub fn new(config: NetConfig) -> io::Result<Self> {
        let refused = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let pairs = config.taps.len();
        let Some(first) = config.taps.first().filter(|_| pairs <= MAX_PAIRS) else {
            return refused("A network device has 1 to 256 queue pairs");
        };
        if config.mac.first().is_none_or(|first| first & 1 != 0) {
            return refused("The MAC address of a network device must be unicast");
        }
        if config.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return refused("The MTU of a network device must be 68 or more");
        }
        let mut features = RING_FEATURES
            | queue::offload_features(first.known_offloads())
            | VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
            | VIRTIO_NET_F_MAC
            | VIRTIO_NET_F_MRG_RXBUF
            | VIRTIO_NET_F_STATUS
            | VIRTIO_NET_F_CTRL_VQ
            | VIRTIO_NET_F_CTRL_RX
            | VIRTIO_NET_F_CTRL_VLAN
            | VIRTIO_NET_F_CTRL_RX_EXTRA
            | VIRTIO_NET_F_GUEST_ANNOUNCE
            | VIRTIO_NET_F_CTRL_MAC_ADDR;
        features |= if pairs > 1 { VIRTIO_NET_F_MQ } else { 0 };
        features |= if config.mtu.is_some() { VIRTIO_NET_F_MTU } else { 0 };
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "net",
                features,
                queue_sizes,
                config_len: CONFIG_LEN,
            },
            pairs: config.taps.into_iter().map(Pair::new).collect(),
            mac: config.mac,
            mtu: config.mtu,
            receive_rules: ReceiveRules {
                mergeable: false,
                checksums: false,
                limiter: Limiter::new(config.receive_limits),
                timer: Timer::new()?,
            },
            transmit_rules: TransmitRules {
                features: 0,
                link_up: config.link_up,
                limiter: Limiter::new(config.transmit_limits),
                timer: Timer::new()?,
            },
            orders: NetControl::new()?,
            state: fresh_state(config.mac),
            controlled: false,
            more_control: false,
            metrics: Arc::default(),
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    /// A handle for orders at run time.
    pub fn control(&self) -> NetControl {
        self.orders.clone()
    }

    /// The control queue comes after the pairs that the driver knows of (5.1.2).
    fn control_queue(&self) -> u16 {
        let pairs = if self.transmit_rules.features & VIRTIO_NET_F_MQ != 0 { self.pairs.len() } else { 1 };
        2 * pairs as u16
    }

    fn receive(&mut self, io: &mut DeviceIo<'_>, index: usize) -> Result<Progress, DeviceFault> {
        let events = io.events;
        let usable = self.transmit_rules.link_up && self.in_use(index);
        let Some(pair) = self.pairs.get_mut(index).filter(|_| usable) else { return Ok(Progress::Idle) };
        let Some(mut ring) = io.ring(2 * index as u16) else { return Ok(Progress::Idle) };
        let turn = pair.receiver.turn(&mut ring, &pair.tap, &mut self.receive_rules, &self.metrics)?;
        if !pair.receiver.readable {
            pair.watch(events, index, true);
        }
        Ok(progress(turn))
    }

    fn transmit(&mut self, io: &mut DeviceIo<'_>, index: usize) -> Result<Progress, DeviceFault> {
        let events = io.events;
        let Some(pair) = self.pairs.get_mut(index) else { return Ok(Progress::Idle) };
        let Some(mut ring) = io.ring(2 * index as u16 + 1) else { return Ok(Progress::Idle) };
        let turn = pair.transmitter.turn(&mut ring, &pair.tap, &mut self.transmit_rules, &self.metrics)?;
        if pair.transmitter.blocked {
            pair.watch(events, index, true);
        }
        Ok(progress(turn))
    }

    /// Does `act` for every pair; work left behind in any is work left behind.
    fn each(
        &mut self,
        io: &mut DeviceIo<'_>,
        act: impl Fn(&mut Self, &mut DeviceIo<'_>, usize) -> Result<Progress, DeviceFault>,
    ) -> Result<Progress, DeviceFault> {
        let mut progress = Progress::Idle;
        for index in 0..self.pairs.len() {
            if act(self, io, index)? == Progress::Again {
                progress = Progress::Again;
            }
        }
        Ok(progress)
    }

    /// Whether the driver uses the pair. Where the control queue is somebody else's (QEMU keeps it from a
    /// vhost-user device), a ring that runs is one in use.
    fn in_use(&self, index: usize) -> bool {
        !self.controlled || index < usize::from(self.state.pairs)
    }

    /// Gives the host's packets to the queues that are served. The first keeps the tap's carrier up.
    pub(super) fn attach_used(&mut self) {
        for index in 0..self.pairs.len() {
            let in_use = self.in_use(index);
            let Some(pair) = self.pairs.get_mut(index) else { return };
            let used = index == 0 || in_use && pair.running;
            if pair.attached != used && pair.tap.set_attached(used).is_ok() {
                pair.attached = used;
                pair.receiver.readable = used;
            }
        }
    }

    fn tap_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: usize,
        ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        let events = io.events;
        NetMetrics::add(&self.metrics.tap_events, 1);
        let Some(pair) = self.pairs.get_mut(index) else { return Ok(Progress::Idle) };
        let unblocked = ready.writable && std::mem::take(&mut pair.transmitter.blocked);
        let known = pair.receiver.readable;
        let news = ready.readable && !known;
        pair.receiver.readable |= ready.readable;
        if ready.readable && known && !pair.transmitter.blocked {
            // Nobody takes what the tap tells of: it may be silent until somebody does.
            pair.watch(events, index, false);
        }
        let sent = if unblocked { self.transmit(io, index)? } else { Progress::Idle };
        let received = if news { self.receive(io, index)? } else { Progress::Idle };
        Ok(if sent == Progress::Again { sent } else { received })
    }
}

fn progress(turn: Turn) -> Progress {
    if turn == Turn::More { Progress::Again } else { Progress::Idle }
}

fn fresh_state(mac: [u8; 6]) -> State {
    State { mac, offloads: 0, pairs: 1, modes: 0, announce: false }
}

impl DeviceCore for Net {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            io.events.add(pair.tap.fd(), index as u64, Interest::Edges)?;
            pair.watched = true;
        }
        self.attach_used();
        io.events.add(self.orders.fd(), CONTROL, Interest::Readable)?;
        io.events.add(self.receive_rules.timer.fd(), RECEIVE_TIMER, Interest::Readable)?;
        io.events.add(self.transmit_rules.timer.fd(), TRANSMIT_TIMER, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        let link = if self.transmit_rules.link_up { VIRTIO_NET_S_LINK_UP } else { 0 };
        let announce = if self.state.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let mut space = Vec::with_capacity(CONFIG_LEN as usize);
        space.extend(self.state.mac);
        space.extend((link | announce).to_le_bytes());
        space.extend((self.pairs.len() as u16).to_le_bytes());
        space.extend(self.mtu.unwrap_or(0).to_le_bytes());
        ConfigSpace::new(space)
    }

    fn set_features(&mut self, features: u64) {
        self.transmit_rules.features = features;
        self.receive_rules.mergeable = features & VIRTIO_NET_F_MRG_RXBUF != 0;
        let offloads = queue::guest_offloads(features);
        // A tap that is gone refuses; its successor is told the same.
        self.set_guest_offloads(offloads);
        self.state.offloads = offloads;
        self.receive_rules.checksums = offloads & VIRTIO_NET_F_GUEST_CSUM != 0;
    }

    fn queue_started(&mut self, _io: &mut DeviceIo<'_>, queue: u16, resumed: bool) {
        if queue == self.control_queue() && self.transmit_rules.features & VIRTIO_NET_F_CTRL_VQ != 0 {
            self.controlled = true;
            self.attach_used();
            return;
        }
        let index = usize::from(queue / 2);
        if queue.is_multiple_of(2)
            && let Some(pair) = self.pairs.get_mut(index)
        {
            if !resumed {
                pair.receiver.discard_stale(&pair.tap, &self.metrics.rx_stale);
            }
            pair.receiver.readable = true;
            pair.running = true;
        }
        self.attach_used();
    }

    fn queue_stopped(&mut self, _io: &mut DeviceIo<'_>, queue: u16) {
        self.controlled &= queue != self.control_queue();
        if queue.is_multiple_of(2)
            && let Some(pair) = self.pairs.get_mut(usize::from(queue / 2))
        {
            pair.running = false;
        }
        self.attach_used();
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        let index = usize::from(queue / 2);
        if self.controlled && queue == self.control_queue() {
            self.serve_control(io, queue)
        } else if queue.is_multiple_of(2) {
            self.receive(io, index)
        } else {
            self.transmit(io, index)
        }
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        token: u64,
        ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        match token {
            CONTROL => {
                for order in self.orders.take() {
                    self.carry_out(io, order);
                }
                // `resume` looks at whatever the orders have set free.
                Ok(Progress::Again)
            }
            RECEIVE_TIMER => {
                self.receive_rules.timer.expired();
                self.each(io, Self::receive)
            }
            TRANSMIT_TIMER => {
                self.transmit_rules.timer.expired();
                self.each(io, Self::transmit)
            }
            tap => self.tap_event(io, usize::try_from(tap).unwrap_or(usize::MAX), ready),
        }
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let control = if std::mem::take(&mut self.more_control) {
            self.serve_control(io, self.control_queue())?
        } else {
            Progress::Idle
        };
        let packets = self.each(io, |net, io, index| {
            let more = net.pairs.get_mut(index).map(|pair| {
                let received = std::mem::take(&mut pair.receiver.more);
                (received, std::mem::take(&mut pair.transmitter.more))
            });
            let (receive, transmit) = more.unwrap_or_default();
            let sent = if transmit { net.transmit(io, index)? } else { Progress::Idle };
            let received = if receive { net.receive(io, index)? } else { Progress::Idle };
            Ok(if sent == Progress::Again { sent } else { received })
        })?;
        Ok(if control == Progress::Again { control } else { packets })
    }

    fn drain(&mut self, io: &mut DeviceIo<'_>) {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            pair.receiver.put_back(io.ring(2 * index as u16).as_mut());
        }
    }

    fn reset(&mut self, io: &mut DeviceIo<'_>) {
        self.state = fresh_state(self.mac);
        self.controlled = false;
        self.more_control = false;
        self.set_features(0);
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            pair.receiver.put_back(None);
            pair.receiver.more = false;
            pair.running = false;
            pair.transmitter = Transmitter::default();
            pair.watch(io.events, index, true);
        }
        self.attach_used();
        // The limits keep their levels: a guest cannot reset its way around them.
    }

    fn save(&self) -> Vec<u8> {
        state::save(&self.state)
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let saved = state::restore(record)?;
        if saved.mac.first().is_none_or(|first| first & 1 != 0) {
            return Err(RecordError::Value("MAC address"));
        }
        if !(1..=self.pairs.len()).contains(&usize::from(saved.pairs)) {
            return Err(RecordError::Value("queue pairs"));
        }
        if !self.set_guest_offloads(saved.offloads) {
            return Err(RecordError::Value("guest offloads"));
        }
        self.state = saved;
        Ok(())
    }
}
