//! KVM's own counters of a vCPU, which any VMM's vCPUs have: what makes two of them comparable.
//!
//! They come through a descriptor of their own (Documentation/virt/kvm/api.rst, "KVM_GET_STATS_FD"), which must be
//! had before the vCPU runs: afterwards KVM would let the asker wait for it. Linux has them from 5.14 on.
#![expect(unsafe_code, reason = "KVM counts behind a descriptor of its own")]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// KVM's names and ours. Those that this host's KVM has not are left out.
const NAMES: [(&str, &str); 11] = [
    ("exits", "kvm_exits"),
    ("io_exits", "kvm_io_exits"),
    ("mmio_exits", "kvm_mmio_exits"),
    ("halt_exits", "kvm_halt_exits"),
    ("irq_exits", "kvm_irq_exits"),
    ("signal_exits", "kvm_signal_exits"),
    ("irq_injections", "kvm_irq_injections"),
    ("hypercalls", "kvm_hypercalls"),
    ("insn_emulation", "kvm_insn_emulation"),
    ("pf_taken", "kvm_pf_taken"),
    ("tlb_flush", "kvm_tlb_flush"),
];

/// Sizes of `struct kvm_stats_header` and of `struct kvm_stats_desc` without its name.
const HEADER_LEN: usize = 24;
const DESCRIPTOR_LEN: usize = 16;
/// Far more than KVM has, and longer names than it gives.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME_LEN: u32 = 256;

/// The counters of one vCPU.
pub(crate) struct KvmStats {
    file: File,
    /// Our name, and where the value is.
    places: Vec<(&'static str, u64)>,
}

fn field(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|field| field.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))
}

impl KvmStats {
    /// The counters of a vCPU that does not run yet; None where KVM has none to give.
    pub(crate) fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: this request takes no argument.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return None;
        }
        // SAFETY: KVM made the descriptor just now; nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = Self::find(&file).ok()?;
        Some(Self { file, places })
    }

    fn find(file: &File) -> Result<Vec<(&'static str, u64)>> {
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0)?;
        let (name_len, count) = (field(&header, 4)?, field(&header, 8)?);
        let (descriptors, data) = (field(&header, 16)?, field(&header, 20)?);
        if name_len > MAX_NAME_LEN || count > MAX_DESCRIPTORS {
            return Err(ErrorKind::InvalidData.into());
        }
        let each = DESCRIPTOR_LEN + name_len as usize;
        let mut bytes = vec![0; each * count as usize];
        file.read_exact_at(&mut bytes, descriptors.into())?;
        let mut places = Vec::new();
        for descriptor in bytes.chunks_exact(each) {
            let name = descriptor.get(DESCRIPTOR_LEN..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if let Some((_, ours)) = NAMES.iter().find(|(known, _)| known.as_bytes() == name) {
                places.push((*ours, u64::from(data) + u64::from(field(descriptor, 8)?)));
            }
        }
        Ok(places)
    }

    /// The values as they are now.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.places.iter().map(|(name, place)| {
            let mut value = [0; 8];
            // Of an open descriptor it cannot fail; a value that cannot be had is none.
            let _ = self.file.read_exact_at(&mut value, *place);
            (*name, u64::from_ne_bytes(value))
        })
    }
}

/// Adds values to those of the same name, in the order in which the names came first.
pub(crate) fn add(totals: &mut Vec<(&'static str, u64)>, values: impl Iterator<Item = (&'static str, u64)>) {
    for (name, value) in values {
        match totals.iter_mut().find(|(known, _)| *known == name) {
            Some((_, total)) => *total = total.wrapping_add(value),
            None => totals.push((name, value)),
        }
    }
}
