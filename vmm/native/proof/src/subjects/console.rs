//! The console device with two ports, each on a socket.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use strato_devices::console::{Console, ConsoleConfig, ConsoleControl, PortConfig};
use strato_virtio::DeviceCore;

use crate::choices::Choices;
use crate::machine::Machine;
use crate::subject::{QueueUse, Request, Subject};

/// Control messages (virtio 1.2, 5.3.6.2): DEVICE_READY is 0, PORT_READY 3, PORT_OPEN 6.
const EVENTS: u64 = 9;
const VIRTIO_CONSOLE_F_MULTIPORT: u64 = 1 << 1;
const CONTROL_TRANSMIT: u16 = 3;

struct Terminals {
    /// The host's end and the device's end of each port.
    ports: Vec<(UnixStream, UnixStream)>,
    control: Option<ConsoleControl>,
}

pub(crate) fn make() -> Box<dyn Subject> {
    let pair = || {
        let (host, device) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        (host, device)
    };
    Box::new(Terminals { ports: vec![pair(), pair()], control: None })
}

impl Subject for Terminals {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let end = |stream: &UnixStream| Some(OwnedFd::from(stream.try_clone().unwrap()));
        let ports = self.ports.iter().enumerate().map(|(number, (_, device))| PortConfig {
            name: format!("port{number}"),
            console: number == 0,
            input: end(device),
            output: end(device),
        });
        let console = Console::new(ConsoleConfig { ports: ports.collect(), size: (80, 25) }).unwrap();
        self.control = Some(console.control());
        Box::new(console)
    }

    fn queues(&self) -> &'static [QueueUse] {
        // Of the first port, of control, of the second port: to the guest and from it.
        &[
            QueueUse::Buffers,
            QueueUse::Requests,
            QueueUse::Buffers,
            QueueUse::Requests,
            QueueUse::Buffers,
            QueueUse::Requests,
        ]
    }

    fn request(&self, choices: &mut Choices<'_>, queue: u16) -> Request {
        if queue.is_multiple_of(2) {
            return Request { readable: Vec::new(), writable: choices.one_of(&[0, 1, 8, 64, 4096]) };
        }
        let mut readable = vec![0x5a; choices.below(600) as usize];
        if queue == CONTROL_TRANSMIT {
            readable = (choices.below(3) as u32).to_le_bytes().to_vec();
            readable.extend_from_slice(&(choices.below(EVENTS) as u16).to_le_bytes());
            readable.extend_from_slice(&(choices.below(2) as u16).to_le_bytes());
            if choices.once_in(8) {
                readable.truncate(choices.below(9) as usize);
            }
        }
        Request { readable, writable: 0 }
    }

    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        if choices.once_in(8) {
            let size = choices.number();
            return self.control.as_ref().unwrap().resize(size as u16, (size >> 16) as u16).unwrap();
        }
        let host = &mut self.ports[choices.below(2) as usize].0;
        // Full or empty is as good.
        if choices.once_in(2) {
            let _ = host.write(&[7; 300]);
        } else {
            let _ = host.read(&mut [0; 300]);
        }
    }

    fn probe(&mut self, machine: &mut Machine) {
        if machine.features() & VIRTIO_CONSOLE_F_MULTIPORT != 0 {
            // DEVICE_READY, PORT_READY, PORT_OPEN.
            for event in [0u16, 3, 6] {
                let mut message = vec![0; 4];
                message.extend_from_slice(&event.to_le_bytes());
                message.extend_from_slice(&1u16.to_le_bytes());
                machine.ask(CONTROL_TRANSMIT, &message, 0);
            }
        }
        let host = &mut self.ports[0].0;
        while host.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
        machine.ask(1, b"from the guest", 0);
        let deadline = machine.deadline();
        let mut heard = Vec::new();
        while !heard.ends_with(b"from the guest") {
            assert!(std::time::Instant::now() < deadline, "nothing from the guest");
            machine.host.turn(1);
            let mut part = [0; 4096];
            if let Ok(count) = host.read(&mut part) {
                heard.extend_from_slice(&part[..count]);
            }
        }
        let mut left = &b"from the host"[..];
        let mut got = Vec::new();
        while !left.is_empty() || !got.ends_with(b"from the host") {
            // Full, as long as what the host said before has not been taken.
            left = &left[host.write(left).unwrap_or(0)..];
            got.extend(machine.ask_until(0, &[], 4096, deadline));
        }
    }
}
