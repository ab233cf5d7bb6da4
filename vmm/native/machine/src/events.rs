//! What a machine has to say to its owner.

/// Something happened that the machine does not decide about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest asked for a reset, by the register that ACPI names.
    Reset,
    /// The guest switched itself off (ACPI sleep state S5).
    Shutdown,
    /// The guest's kernel panicked (pvpanic, bit 0).
    Panicked,
    /// The guest's kernel panicked and its crash kernel takes over (pvpanic, bit 1).
    CrashLoaded,
    /// A vCPU met a fault it cannot deliver: how x86 kernels without firmware reset, and how they die.
    TripleFault,
    /// A vCPU cannot go on: KVM's words.
    VcpuFailed(String),
    /// A thread of the machine panicked: a bug.
    Bug(String),
}

/// Hears of events on the thread they happen on. Must not wait.
pub trait MachineEvents: Send + Sync {
    /// Takes note of an event.
    fn happened(&self, event: MachineEvent);
}

impl MachineEvent {
    /// How the guest's end is called, if this is one. After an end no vCPU runs until the machine is reset.
    pub fn end(&self) -> Option<&'static str> {
        match self {
            Self::Reset => Some("reset"),
            Self::Shutdown => Some("shutdown"),
            Self::TripleFault => Some("triple fault"),
            Self::VcpuFailed(_) => Some("failed vCPU"),
            Self::Panicked | Self::CrashLoaded | Self::Bug(_) => None,
        }
    }
}
