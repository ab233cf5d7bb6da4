//! The control queue (virtio 1.2, 5.1.6.5): what the driver asks of the device besides packets.

use strato_virtio::{Chain, DeviceFault, DeviceIo, Progress};

use super::device::Net;
use super::metrics::NetMetrics;
use super::queue::{self, Command};

/// Answers (5.1.6.5).
const VIRTIO_NET_OK: u8 = 0;
const VIRTIO_NET_ERR: u8 = 1;

impl Net {
    /// Answers the commands that wait.
    pub(super) fn serve_control(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue: u16,
    ) -> Result<Progress, DeviceFault> {
        let mut chain = Chain::new();
        let Some(mut ring) = io.ring(queue) else { return Ok(Progress::Idle) };
        let mut budget = ring.size();
        loop {
            if budget == 0 {
                ring.notify()?;
                self.more_control = true;
                return Ok(Progress::Again);
            }
            if !ring.pop(&mut chain)? {
                if ring.allow_kicks()? {
                    continue;
                }
                ring.notify()?;
                // `resume` looks at whatever the commands have set free.
                return Ok(Progress::Again);
            }
            budget -= 1;
            if chain.writable_len() == 0 {
                // There is no way to answer, so nothing is done either.
                ring.complete(chain.head(), 0)?;
                continue;
            }
            let command = queue::parse_command(chain.readable_len(), |offset, data| {
                ring.read(&chain, offset, data).is_ok()
            });
            let done = command.is_some_and(|command| self.obey(command));
            let counter = if done { &self.metrics.control_commands } else { &self.metrics.control_refused };
            NetMetrics::add(counter, 1);
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            ring.write(&chain, 0, &[answer]).map_err(|error| ring.fault(error))?;
            ring.complete(chain.head(), 1)?;
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::ReceiveMode { mode, on } => {
                self.state.modes = self.state.modes & !(1 << mode) | u8::from(on) << mode;
                true
            }
            Command::MacTable | Command::Vlan => true,
            Command::SetMac(mac) => {
                self.state.mac = mac;
                true
            }
            Command::AnnounceAck => {
                self.state.announce = false;
                true
            }
            Command::SetPairs(pairs) => self.set_pairs(pairs),
            Command::GuestOffloads(offloads) => self.set_guest_offloads(offloads),
        }
    }
}
