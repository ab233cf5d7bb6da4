//! The kinds of threads that strato-vmm has, and what each may do.

use strato_plumbing::capabilities::Capabilities;

use crate::program::{Instruction, Otherwise};
#[cfg(feature = "proof")]
use crate::program::{MAX_INSTRUCTIONS, Program};
use crate::rules::Rule;
use crate::tables;

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The first thread: Python, QMP, the console, the lives of all others.
    Control,
    /// The conversation of a device with a vhost-user front end.
    Service,
    /// Streams between the guest and unix sockets.
    Vsock,
    /// A share: FUSE and the host's files.
    Fs,
    /// What takes long in a share.
    FsPool,
    /// A disk.
    Block,
    /// What takes long on a disk without io_uring.
    BlockPool,
    /// An interface: a tap.
    Net,
    /// Random numbers.
    Rng,
    /// The guest's console.
    Console,
    /// The balloon: memory comes and goes.
    Balloon,
    /// Makes the guest's memory present.
    Ram,
    /// A processor of the guest's.
    Vcpu,
    /// Starts threads of all other roles but the first.
    Keeper,
}

/// CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP (linux/capability.h): to act for
/// each of the guest's users. `SHARE_CAPABILITIES` in vmm/jail/view.py is the same list.
const SHARE: Capabilities = Capabilities::of(&[0, 1, 3, 4, 6, 7, 27, 31]);

impl Role {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Control,
        Self::Service,
        Self::Vsock,
        Self::Fs,
        Self::FsPool,
        Self::Block,
        Self::BlockPool,
        Self::Net,
        Self::Rng,
        Self::Console,
        Self::Balloon,
        Self::Ram,
        Self::Vcpu,
        Self::Keeper,
    ];

    /// The role of a device's own thread, by the device ID (virtio 1.2, section 5).
    pub fn of_device(id: u32) -> Option<Self> {
        match id {
            1 => Some(Self::Net),
            2 => Some(Self::Block),
            3 => Some(Self::Console),
            4 => Some(Self::Rng),
            5 => Some(Self::Balloon),
            19 => Some(Self::Vsock),
            26 => Some(Self::Fs),
            _ => None,
        }
    }

    /// The capabilities that such a thread keeps, of those that it has.
    pub fn capabilities(self) -> Capabilities {
        match self {
            Self::Fs | Self::FsPool | Self::Keeper => SHARE,
            _ => Capabilities::NONE,
        }
    }

    /// The rules that its filter is made from.
    pub fn rules(self) -> &'static [Rule] {
        tables::of(self).rules
    }

    /// Its filter, but for one rule. Not in a product.
    #[cfg(feature = "proof")]
    pub fn filter_without(self, rule: usize, otherwise: Otherwise) -> Box<Program<MAX_INSTRUCTIONS>> {
        Box::new(Program::new(self.rules(), otherwise, Some(rule)))
    }

    /// Its filter.
    pub fn filter(self, otherwise: Otherwise) -> &'static [Instruction] {
        let table = tables::of(self);
        match otherwise {
            Otherwise::Kill => table.kill,
            Otherwise::Log => table.log,
        }
    }
}
