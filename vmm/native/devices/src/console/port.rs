//! A port: what the guest has said of it, and what it has to be told.

use std::io;

use super::backend::{HostSide, PortConfig};
use super::queue::{
    CONSOLE_PORT, DEVICE_ADD, DEVICE_READY, Message, PORT_NAME, PORT_OPEN, PORT_READY, RESIZE,
};
use super::state::SavedPort;

/// What the guest has to be told of a port, each once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    pub(super) add: bool,
    pub(super) console: bool,
    pub(super) name: bool,
    pub(super) resize: bool,
    pub(super) open: bool,
}

/// One port.
pub(super) struct Port {
    name: String,
    console: bool,
    pub(super) host: HostSide,
    /// What the guest was told of the host's side last.
    pub(super) told_open: bool,
    pub(super) driver: SavedPort,
    pub(super) due: Due,
}

impl Port {
    /// # Errors
    /// A descriptor that cannot be used.
    pub(super) fn new(config: PortConfig, first: bool) -> io::Result<Self> {
        Ok(Self {
            name: config.name,
            console: config.console || first,
            host: HostSide::new(config.input, config.output)?,
            told_open: false,
            driver: SavedPort::default(),
            due: Due::default(),
        })
    }

    /// The host may have gone.
    pub(super) fn note_host(&mut self) {
        if self.driver.ready && self.told_open != self.host.connected() {
            self.due.open = true;
        }
    }

    /// The driver is gone.
    pub(super) fn reset(&mut self) {
        self.driver = SavedPort::default();
        self.due = Due::default();
        self.told_open = false;
    }

    fn next_message(&self, id: u32, size: (u16, u16)) -> Option<Vec<u8>> {
        let message = |event, value| Message { port: id, event, value };
        if self.due.add {
            return Some(message(DEVICE_ADD, 1).bytes(&[]));
        }
        if self.due.console {
            return Some(message(CONSOLE_PORT, 1).bytes(&[]));
        }
        if self.due.name {
            return Some(message(PORT_NAME, 1).bytes(self.name.as_bytes()));
        }
        if self.due.resize {
            let [a, b] = size.0.to_le_bytes();
            let [c, d] = size.1.to_le_bytes();
            return Some(message(RESIZE, 1).bytes(&[a, b, c, d]));
        }
        self.due.open.then(|| message(PORT_OPEN, u16::from(self.host.connected())).bytes(&[]))
    }

    /// The message that was next has been sent.
    pub(super) fn told(&mut self) {
        let due = &mut self.due;
        let first =
            [&mut due.add, &mut due.console, &mut due.name, &mut due.resize].into_iter().find(|due| **due);
        match first {
            Some(due) => *due = false,
            None => {
                self.due.open = false;
                self.told_open = self.host.connected();
            }
        }
    }
}

/// What the guest has to be told next, and the port that it is about.
pub(super) fn next_message(ports: &[Port], size: (u16, u16)) -> Option<(usize, Vec<u8>)> {
    ports
        .iter()
        .zip(0..)
        .enumerate()
        .find_map(|(index, (port, id))| Some((index, port.next_message(id, size)?)))
}

/// Does what the guest says; false if it makes no sense.
pub(super) fn take_message(ports: &mut [Port], message: Message) -> bool {
    let Message { port, event, value } = message;
    if event == DEVICE_READY {
        for port in ports.iter_mut().filter(|_| value == 1) {
            port.due.add = true;
        }
        return true;
    }
    let index = usize::try_from(port).unwrap_or(usize::MAX);
    let Some(port) = ports.get_mut(index) else { return false };
    match event {
        PORT_READY if value == 1 => {
            port.driver.ready = true;
            port.due.console = port.console;
            port.due.name = !port.name.is_empty();
            port.due.resize = index == 0;
            port.due.open = port.host.connected();
        }
        // The driver could not set it up.
        PORT_READY => port.driver = SavedPort::default(),
        PORT_OPEN => port.driver.guest_open = value == 1,
        _ => return false,
    }
    true
}
