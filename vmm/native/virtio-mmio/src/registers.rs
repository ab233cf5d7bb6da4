//! Where the registers lie (virtio 1.2, 4.2.2, table 4.1) and what kind of access hits which.

/// Length of a device's window: registers, then the configuration space.
pub const WINDOW_LEN: u64 = 0x1000;

/// "virt"
pub(crate) const MAGIC: u32 = 0x7472_6976;
/// Not a legacy device.
pub(crate) const VERSION: u32 = 2;
/// Of whoever made the device; drivers ignore it. "stra"
pub(crate) const VENDOR: u32 = 0x6172_7473;
/// Base and length of a shared memory region that does not exist, each half of them.
pub(crate) const NO_REGION: u32 = u32::MAX;

const CONFIG: u64 = 0x100;

/// The registers of this version; QueueReset is that of a feature that is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNumMax,
    QueueNum,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    ShmSel,
    ShmLenLow,
    ShmLenHigh,
    ShmBaseLow,
    ShmBaseHigh,
    ConfigGeneration,
    /// Aligned, but there is no such register.
    Unknown,
}

impl Register {
    fn at(offset: u64) -> Self {
        match offset {
            0x000 => Self::MagicValue,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSel,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSel,
            0x030 => Self::QueueSel,
            0x034 => Self::QueueNumMax,
            0x038 => Self::QueueNum,
            0x044 => Self::QueueReady,
            0x050 => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueDescLow,
            0x084 => Self::QueueDescHigh,
            0x090 => Self::QueueDriverLow,
            0x094 => Self::QueueDriverHigh,
            0x0a0 => Self::QueueDeviceLow,
            0x0a4 => Self::QueueDeviceHigh,
            0x0ac => Self::ShmSel,
            0x0b0 => Self::ShmLenLow,
            0x0b4 => Self::ShmLenHigh,
            0x0b8 => Self::ShmBaseLow,
            0x0bc => Self::ShmBaseHigh,
            0x0fc => Self::ConfigGeneration,
            _ => Self::Unknown,
        }
    }
}

/// What an access hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A register, as a driver must access it: 32 bits, aligned (4.2.2.2).
    Register(Register),
    /// The configuration space from this offset on, in any width: the fields of some devices are unaligned.
    Config(u32),
    /// Neither.
    Nowhere,
}

impl Place {
    pub(crate) fn of(offset: u64, len: usize) -> Self {
        match offset.checked_sub(CONFIG) {
            Some(inside) => u32::try_from(inside).map_or(Self::Nowhere, Self::Config),
            None if len == 4 && offset.is_multiple_of(4) => Self::Register(Register::at(offset)),
            None => Self::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_aligned_words_and_the_rest_is_configuration_or_nothing() {
        assert_eq!(Place::of(0x000, 4), Place::Register(Register::MagicValue));
        assert_eq!(Place::of(0x070, 4), Place::Register(Register::Status));
        assert_eq!(Place::of(0x0fc, 4), Place::Register(Register::ConfigGeneration));
        // QueueReset is that of a feature that is not offered.
        assert_eq!(Place::of(0x0c0, 4), Place::Register(Register::Unknown));
        for offset in 0..CONFIG {
            for len in [0, 1, 2, 3, 4, 8, usize::MAX] {
                let word = len == 4 && offset % 4 == 0;
                assert_eq!(matches!(Place::of(offset, len), Place::Register(_)), word, "{offset:#x}+{len}");
                assert_eq!(Place::of(offset, len) == Place::Nowhere, !word, "{offset:#x}+{len}");
            }
        }
        for len in [0, 1, 2, 4, 8, usize::MAX] {
            assert_eq!(Place::of(CONFIG, len), Place::Config(0));
            assert_eq!(Place::of(CONFIG + 7, len), Place::Config(7));
            assert_eq!(Place::of(CONFIG + u64::from(u32::MAX), len), Place::Config(u32::MAX));
            assert_eq!(Place::of(CONFIG + u64::from(u32::MAX) + 1, len), Place::Nowhere);
            assert_eq!(Place::of(u64::MAX, len), Place::Nowhere);
        }
    }
}
