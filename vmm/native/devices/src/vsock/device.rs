//! The socket device core: the life of connections.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strato_virtio::record::RecordError;
use strato_virtio::{
    Chain, ConfigSpace, DeviceCore, DeviceFault, DeviceInfo, DeviceIo, Events, Interest, Progress,
    RING_FEATURES, Ready,
};

use super::backend::{HostListener, beside};
use super::connection::Phase;
use super::control::{ControlInbox, Notice, VsockControl};
use super::metrics::VsockMetrics;
use super::opening::FIRST_HOST_PORT;
use super::queue::{F_SEQPACKET, Header, SocketType};
use super::receive::BATCH;
use super::state::{self, Saved};
use super::table::{Stream, Table, Token};
use crate::timer::Timer;

const DEVICE_TYPE: u32 = 19;
/// To the guest.
pub(super) const RX_QUEUE: u16 = 0;
/// From the guest.
pub(super) const TX_QUEUE: u16 = 1;
/// Events to the guest.
pub(super) const EVENT_QUEUE: u16 = 2;

pub(super) const LISTENER: u64 = 0;
pub(super) const MESSAGE_LISTENER: u64 = 1;
const TIMER: u64 = 2;
const CONTROL: u64 = 3;
const ANNOUNCEMENT: u64 = 4;

/// How long a host program may take to say where it wants to go, a guest to answer once it was asked (and to
/// have room for the question), and a host program's backlog to have room. An emulated guest on a busy host
/// does take seconds, and a guest that has nobody listening says so at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a host program with a full backlog is asked again.
pub(super) const DIAL_AGAIN: Duration = Duration::from_millis(5);

/// How long a stream may stand still for want of room in the guest before the guest is asked for news. Linux
/// tells by itself when it has consumed three quarters of its window, and each question costs it an answer.
const STANDSTILL: Duration = Duration::from_millis(50);

/// How long the listener rests when the process has no descriptors left.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

/// What a socket device is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub guest_cid: u64,
    /// Where host programs connect, those that send messages at `<path>_seq`; `<path>_<port>` is where the guest
    /// does.
    pub path: PathBuf,
    /// Most connections at a time.
    pub max_connections: usize,
}

/// The socket device.
pub struct Vsock {
    info: DeviceInfo,
    pub(super) config: VsockConfig,
    listener: HostListener,
    message_listener: HostListener,
    /// The driver knows of sockets of type SEQPACKET.
    messages: bool,
    pub(super) table: Table,
    pub(super) metrics: Arc<VsockMetrics>,
    /// Resets for packets that belong to no connection.
    pub(super) replies: VecDeque<Header>,
    /// The transmit queue waits until replies are taken.
    pub(super) transmit_waits: bool,
    /// The guest has to hear of a transport reset before anything else.
    pub(super) notice: Notice,
    pub(super) tx_chain: Chain,
    pub(super) rx_chains: Vec<Chain>,
    /// Runs while packets were taken that the guest has not been told of.
    pub(super) announcement: Timer,
    /// Pieces of the packets that the guest does not know to be taken.
    pub(super) unannounced_pieces: usize,
    timer: Timer,
    pub(super) deadlines: VecDeque<(Instant, Token)>,
    /// Streams that waited for room in the guest, with what they had sent by then.
    pub(super) observed: VecDeque<(Instant, Token, u32)>,
    pub(super) dialling: Vec<Token>,
    pub(super) listeners_aside: bool,
    pub(super) transmit_pending: bool,
    pub(super) next_port: u32,
    control: ControlInbox,
    pub(super) patience: Duration,
}

impl Vsock {
    /// Listens at the configured path.
    ///
    /// # Errors
    /// The path cannot be listened at, the context id is one of the reserved ones, or there are no
    /// descriptors.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        if config.guest_cid <= 2 || config.guest_cid >= u64::from(u32::MAX) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "Guest CID must be from 3 to 4294967294",
            ));
        }
        let listener = HostListener::bind(config.path.clone(), SocketType::Stream)?;
        let message_listener = HostListener::bind(beside(&config.path, "seq"), SocketType::Seqpacket)?;
        Ok(Self {
            info: DeviceInfo {
                device_type: DEVICE_TYPE,
                name: "vsock",
                features: RING_FEATURES | F_SEQPACKET,
                queue_sizes: vec![256, 256, 4],
                config_len: 8,
            },
            config,
            listener,
            message_listener,
            messages: false,
            table: Table::default(),
            metrics: Arc::default(),
            replies: VecDeque::new(),
            transmit_waits: false,
            notice: Notice::None,
            tx_chain: Chain::new(),
            rx_chains: vec![Chain::new(); BATCH],
            announcement: Timer::new()?,
            unannounced_pieces: 0,
            timer: Timer::new()?,
            deadlines: VecDeque::new(),
            observed: VecDeque::new(),
            dialling: Vec::new(),
            listeners_aside: false,
            transmit_pending: false,
            next_port: FIRST_HOST_PORT,
            control: ControlInbox::new()?,
            patience: PATIENCE,
        })
    }

    /// The handle for what is asked of the device at run time.
    pub fn control(&self) -> VsockControl {
        self.control.handle()
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Ends all connections and tells the guest that the transport was reset (a clone, a restored guest).
    pub fn reset_transport(&mut self) {
        self.driver_gone();
        self.notice = Notice::Due;
    }

    /// The socket at which those host programs come, with its token.
    pub(super) fn listener(&self, socket_type: SocketType) -> (&HostListener, u64) {
        match socket_type {
            SocketType::Stream => (&self.listener, LISTENER),
            SocketType::Seqpacket => (&self.message_listener, MESSAGE_LISTENER),
        }
    }

    /// Whether the driver knows of sockets of that type.
    pub(super) fn carries(&self, socket_type: SocketType) -> bool {
        socket_type == SocketType::Stream || self.messages
    }

    pub(super) fn set_timer(&mut self) {
        let deadline = self.deadlines.front().map(|(when, _)| *when);
        let look = self.observed.front().map(|(when, ..)| *when);
        let next = deadline.into_iter().chain(look).min();
        let next = next.map(|when| when.saturating_duration_since(Instant::now()));
        if !self.dialling.is_empty() {
            self.timer.arm_within(DIAL_AGAIN);
        } else if self.listeners_aside {
            self.timer.arm_within(LISTEN_AGAIN);
        } else if let Some(after) = next {
            self.timer.arm(after);
        } else {
            self.timer.disarm();
        }
    }

    /// Hears from now on of host programs that come.
    fn listen(&self, events: &Events) -> io::Result<()> {
        for socket_type in [SocketType::Stream, SocketType::Seqpacket] {
            let (listener, token) = self.listener(socket_type);
            events.remove(listener.fd());
            events.add(listener.fd(), token, Interest::Readable)?;
        }
        Ok(())
    }

    fn timer_expired(&mut self, events: &Events) {
        self.timer.expired();
        if self.listeners_aside {
            self.listeners_aside = self.listen(events).is_err();
        }
        for token in std::mem::take(&mut self.dialling) {
            self.dial(events, token);
        }
        let now = Instant::now();
        while self.deadlines.front().is_some_and(|(when, _)| *when <= now) {
            let Some((_, token)) = self.deadlines.pop_front() else { break };
            match self.table.get_mut(token) {
                Some(Stream::Connection(connection)) if connection.phase == Phase::Open => {}
                // The question waited in line; the time for the answer began later.
                Some(Stream::Connection(connection)) if connection.asked_since(now, self.patience) => {
                    self.deadlines.push_back((now + self.patience, token));
                }
                Some(_) => self.give_up(token),
                None => {}
            }
        }
        self.look_at_the_observed(now);
        self.set_timer();
    }

    /// Looks again later if the stream waits for room in the guest.
    pub(super) fn observe(&mut self, token: Token) {
        let Some(connection) = self.table.connection(token) else { return };
        if connection.waits_for_room() && !connection.asked_for_room && !connection.observed {
            connection.observed = true;
            self.observed.push_back((Instant::now() + STANDSTILL, token, connection.sent_to_guest()));
            self.forget_the_gone();
            if self.observed.len() == 1 {
                self.set_timer();
            }
        }
    }

    /// Asks the guest for news of its window where nothing has moved.
    fn look_at_the_observed(&mut self, now: Instant) {
        while self.observed.front().is_some_and(|(when, ..)| *when <= now) {
            let Some((_, token, sent)) = self.observed.pop_front() else { break };
            let Some(connection) = self.table.connection(token) else { continue };
            connection.observed = false;
            if connection.waits_for_room() && connection.sent_to_guest() == sent {
                connection.asked_for_room = true;
                connection.due.credit_request = true;
                self.table.schedule(token);
            }
            self.observe(token);
        }
    }

    /// Too late: a client that said nothing, a guest or a host program that did not answer.
    fn give_up(&mut self, token: Token) {
        match self.table.connection(token) {
            // A request that the guest never saw needs no reset.
            Some(connection) if !connection.due.request => self.reset_connection(token),
            _ => self.forget(token),
        }
    }

    /// Ends a connection at once, and tells the guest.
    pub(super) fn reset_connection(&mut self, token: Token) {
        if let Some(connection) = self.table.connection(token) {
            connection.fail();
            self.table.schedule(token);
        }
    }

    /// The guest ends a connection at once. What it sent before is still delivered.
    pub(super) fn reset_by_guest(&mut self, token: Token) {
        let Some(connection) = self.table.connection(token) else { return };
        let ports = connection.ports;
        let undelivered = connection.orphan();
        if let Some(ports) = ports {
            self.table.release_ports(ports);
        }
        if !undelivered {
            self.forget(token);
        }
    }

    pub(super) fn forget(&mut self, token: Token) {
        if let Some(Stream::Connection(_)) = self.table.remove(token) {
            VsockMetrics::add(&self.metrics.closed, 1);
        }
    }

    /// The driver that knew the connections is gone. What it sent is still delivered; host programs whose
    /// request no driver has seen wait for the next one.
    fn driver_gone(&mut self) {
        self.replies.clear();
        self.transmit_waits = false;
        for token in self.table.tokens() {
            if self.table.connection(token).is_some_and(|connection| !connection.due.request) {
                self.reset_by_guest(token);
            }
        }
    }

    /// Hears from now on of a connection's unix socket what is news.
    pub(super) fn watch_otherwise(&mut self, events: &Events, token: Token) {
        let Some(connection) = self.table.connection(token) else { return };
        if let Some((fd, watched)) = connection.watch_otherwise()
            && events.change(fd, token, watched.interest()).is_err()
        {
            // Nothing would be heard of it any more.
            self.reset_connection(token);
        }
    }

    fn stream_ready(&mut self, events: &Events, token: Token, ready: Ready) {
        match self.table.get_mut(token) {
            Some(Stream::Client(..)) => self.hear_client(token),
            Some(Stream::Connection(connection)) => {
                connection.note(ready);
                connection.flush();
                if connection.finished() {
                    self.forget(token);
                } else {
                    self.table.schedule(token);
                    self.observe(token);
                    self.watch_otherwise(events, token);
                }
            }
            // Ended by an earlier event of the same batch.
            None => {}
        }
    }
}

impl DeviceCore for Vsock {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn attach(&mut self, io: &mut DeviceIo<'_>) -> io::Result<()> {
        self.listen(io.events)?;
        io.events.add(self.timer.fd(), TIMER, Interest::Readable)?;
        io.events.add(self.announcement.fd(), ANNOUNCEMENT, Interest::Readable)?;
        io.events.add(self.control.fd(), CONTROL, Interest::Readable)
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::new(self.config.guest_cid.to_le_bytes().to_vec())
    }

    fn set_features(&mut self, features: u64) {
        self.messages = features & F_SEQPACKET != 0;
    }

    fn queue_started(&mut self, _io: &mut DeviceIo<'_>, queue: u16, resumed: bool) {
        // Nothing moves until both data queues run, so a new driver is noticed before it is spoken to.
        if resumed {
            return;
        }
        if queue == EVENT_QUEUE {
            self.notice.forget_answer();
        } else {
            self.driver_gone();
        }
    }

    fn process_queue(&mut self, io: &mut DeviceIo<'_>, queue: u16) -> Result<Progress, DeviceFault> {
        self.transmit_pending |= queue == TX_QUEUE;
        self.resume(io)
    }

    fn process_event(
        &mut self,
        io: &mut DeviceIo<'_>,
        token: u64,
        ready: Ready,
    ) -> Result<Progress, DeviceFault> {
        match token {
            LISTENER => self.accept(io.events, SocketType::Stream),
            MESSAGE_LISTENER => self.accept(io.events, SocketType::Seqpacket),
            TIMER => self.timer_expired(io.events),
            ANNOUNCEMENT => {
                self.announcement.expired();
                self.announce_taken(io)?;
                return Ok(Progress::Idle);
            }
            CONTROL => {
                if self.control.take_reset() {
                    self.reset_on_demand(io);
                }
            }
            _ => self.stream_ready(io.events, token, ready),
        }
        // The guest is served once for all events of a turn.
        Ok(Progress::Again)
    }

    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceFault> {
        let mut progress = self.announce(io)?;
        if self.transmit_pending {
            self.transmit_pending = self.transmit(io)? == Progress::Again;
            if self.transmit_pending {
                progress = Progress::Again;
            }
        }
        if self.receive(io)? == Progress::Again {
            progress = Progress::Again;
        }
        if self.transmit_waits && self.replies.is_empty() {
            self.transmit_waits = false;
            self.transmit_pending = true;
            progress = Progress::Again;
        }
        Ok(progress)
    }

    fn drain(&mut self, io: &mut DeviceIo<'_>) {
        // A ring that cannot be reached any more says so at its next use.
        let _ = self.announce_taken(io);
    }

    fn cancel(&mut self, _io: &mut DeviceIo<'_>) {}

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        self.driver_gone();
        self.messages = false;
        self.notice = Notice::None;
        self.transmit_pending = false;
    }

    fn save(&self) -> Vec<u8> {
        state::save(Saved { guest_cid: self.config.guest_cid, next_port: self.next_port })
    }

    fn restore(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let saved = state::restore(record)?;
        if saved.guest_cid != self.config.guest_cid {
            return Err(RecordError::Value("guest CID"));
        }
        self.next_port = saved.next_port.max(FIRST_HOST_PORT);
        self.reset_transport();
        Ok(())
    }
}
