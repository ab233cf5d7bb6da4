//! Which leaves and features of the host's CPUID a guest gets.
//!
//! KVM has taken out what it cannot virtualise. What is taken out here works, but tells of the host, costs other
//! guests something, or is meant for machines of another kind. Leaves are allowed by name, so that one which a later KVM
//! reports stays away until somebody has looked at it. Bits of a leaf are removed by name: new features of the
//! instruction set are what guests want.
#![expect(unsafe_code, reason = "an instruction")]

use std::arch::x86_64::__cpuid;
use std::ops::RangeInclusive;

use kvm_bindings::kvm_cpuid_entry2;

use super::{Host, Vendor, find_mut};

/// Left out, among others: 0x3 serial number; 0x5 MONITOR; 0xA and 0x8000_0022 performance counters; 0xF and 0x10
/// cache allocation; 0x12 SGX; 0x14 processor trace; 0x1A kinds of core; 0x1D and 0x1E tiles; 0x8000_000A nested SVM;
/// 0x8000_001F memory encryption. The topology leaves 0xB, 0x1F and 0x8000_001E are made in [`super::placement`].
const ALLOWED: [RangeInclusive<u32>; 10] = [
    0x0..=0x2,
    // Caches.
    0x4..=0x4,
    // That the APIC timer runs on in deep sleep; features.
    0x6..=0x7,
    // Sizes of the saved state.
    0xD..=0xD,
    // AVX10.
    0x24..=0x24,
    // KVM's name and its paravirtual features.
    0x4000_0000..=0x4000_0001,
    // Features, name, caches, invariant TSC, widths of addresses.
    0x8000_0000..=0x8000_0008,
    // TLBs of 1 GiB pages, hints for optimisation.
    0x8000_0019..=0x8000_001A,
    // Caches of AMD.
    0x8000_001D..=0x8000_001D,
    // Mitigations of AMD.
    0x8000_0021..=0x8000_0021,
];

#[derive(Clone, Copy)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

pub(super) struct Removal {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) register: Register,
    pub(super) bits: &'static [u32],
}

const fn removal(leaf: u32, subleaf: u32, register: Register, bits: &'static [u32]) -> Removal {
    Removal { leaf, subleaf, register, bits }
}

/// Bit numbers and names are those of Intel's SDM (volume 2A, CPUID) and AMD's APM (volume 3, appendix E).
pub(super) const REMOVED: [Removal; 16] = [
    // MONITOR: a vCPU that waits by MWAIT would keep its host processor.
    removal(0x1, 0, Ecx, &[3]),
    // VMX: no virtual machines inside a container's machine; nested state cannot be saved, and its code in the
    // host's kernel is large. SMX is measured launch.
    removal(0x1, 0, Ecx, &[5, 6]),
    // DTES64, DS-CPL, PDCM: belong to the performance counters.
    removal(0x1, 0, Ecx, &[2, 4, 15]),
    // EST, TM2: frequency and temperature are the host's.
    removal(0x1, 0, Ecx, &[7, 8]),
    // OSXSAVE is what the host's kernel has set; KVM shows the guest's own.
    removal(0x1, 0, Ecx, &[27]),
    // SGX, and SGX_LC below: enclave memory is shared by all of the host.
    removal(0x7, 0, Ebx, &[2]),
    // HLE, RTM: transactions leak (TAA) where microcode has not switched them off altogether. KVM switches them off in
    // hardware for guests that have no RTM here.
    removal(0x7, 0, Ebx, &[4, 11]),
    // PQM, PQE: monitoring and allocation of the host's cache. Processor trace.
    removal(0x7, 0, Ebx, &[12, 15, 25]),
    // OSPKE as OSXSAVE. WAITPKG as MONITOR.
    removal(0x7, 0, Ecx, &[4, 5, 30]),
    // RTM_ALWAYS_ABORT, TSX_FORCE_ABORT, TSXLDTRK: of the transactions. PCONFIG: memory encryption. Arch LBR: of the
    // performance counters. Hybrid: which kind of core it is on is the host's affair.
    removal(0x7, 0, Edx, &[11, 13, 15, 16, 18, 19]),
    // AMX tiles: 8 KiB more to save per vCPU, for which the process would need a permission from the kernel
    // (Documentation/arch/x86/xstate.rst).
    removal(0x7, 0, Edx, &[22, 24, 25]),
    removal(0x7, 1, Eax, &[21]),
    removal(0x7, 1, Edx, &[8]),
    // XFD comes with the tiles.
    removal(0xD, 1, Eax, &[4]),
    // SVM as VMX. IBS, PerfCtrExtCore, -NB, BPEXT, PTSC, -LLC: counters and debugging. ExtApicSpace, SKINIT, WDT,
    // LWP, NodeId, MONITORX.
    removal(0x8000_0001, 0, Ecx, &[2, 3, 10, 12, 13, 15, 19, 23, 24, 26, 27, 28, 29]),
    // RDPRU: reads counters of the host's processor.
    removal(0x8000_0008, 0, Ebx, &[4]),
];

/// ARCH_CAPABILITIES: an MSR of Intel, which KVM offers on AMD as well, where no hardware has it.
const REMOVED_ON_AMD: Removal = removal(0x7, 0, Edx, &[29]);

/// Paravirtual features of KVM that guests get when KVM has them (Documentation/virt/kvm/x86/cpuid.rst):
/// - 0, 3, 24 kvmclock: the clock of the machine, and the frequency of the TSC;
/// - 1 no delay after port accesses: each would be an exit;
/// - 4, 14 asynchronous page faults, by interrupt: other tasks run while the host brings a page back;
/// - 5 steal time, which 9 needs; 6 end of interrupt without an exit where the hardware has no such thing;
/// - 7, 13 spinlocks that sleep and yield, 9 TLB flushes that spare vCPUs which do not run;
/// - 11 interrupts to many vCPUs by one exit; 12 the guest may switch the host's polling for it off.
///
/// Not: 2 long gone; 10 for nested guests; 15 more than 255 processors; 16, 17 migration of encrypted guests.
const PARAVIRTUAL: u32 = bit(0)
    | bit(1)
    | bit(3)
    | bit(4)
    | bit(5)
    | bit(6)
    | bit(7)
    | bit(9)
    | bit(11)
    | bit(12)
    | bit(13)
    | bit(14)
    | bit(24);

/// The leaf of KVM's paravirtual features (KVM_CPUID_FEATURES of asm/kvm_para.h).
pub const KVM_FEATURES: u32 = 0x4000_0001;

/// TSC deadlines of the APIC timer, and the sign that there is a hypervisor: leaf 1, ECX. KVM leaves both to its user.
const TSC_DEADLINE: u32 = bit(24);
const HYPERVISOR: u32 = bit(31);

/// The processor's name, of which KVM says nothing.
const BRAND: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];

/// Saved state of the AMX tiles: configuration and data (Intel SDM volume 1, section 13.1).
const TILE_STATES: [u32; 2] = [17, 18];
/// The x87 and SSE state and the header in front of all other components (section 13.4.1).
const LEGACY_STATE_BYTES: u32 = 576;

const fn bit(number: u32) -> u32 {
    1 << number
}

/// Those of KVM's entries whose leaf a guest gets.
pub fn allowed(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let allowed = |leaf| ALLOWED.iter().any(|range| range.contains(&leaf));
    supported.iter().filter(|entry| allowed(entry.function)).copied().collect()
}

/// Takes out what a guest does not get.
pub fn remove_features(entries: &mut [kvm_cpuid_entry2], vendor: Vendor) {
    let vendors = (vendor == Vendor::Amd).then_some(&REMOVED_ON_AMD);
    for removal in REMOVED.iter().chain(vendors) {
        if let Some(entry) = find_mut(entries, removal.leaf, removal.subleaf) {
            let register = match removal.register {
                Eax => &mut entry.eax,
                Ebx => &mut entry.ebx,
                Ecx => &mut entry.ecx,
                Edx => &mut entry.edx,
            };
            *register &= !removal.bits.iter().fold(0, |mask, number| mask | bit(*number));
        }
    }
    if let Some(features) = find_mut(entries, KVM_FEATURES, 0) {
        features.eax &= PARAVIRTUAL;
        // EDX has hints, such as that vCPUs have processors of their own, which is not so.
        (features.ebx, features.ecx, features.edx) = (0, 0, 0);
    }
}

/// The name of the host's processor, as any program can read it: the guest sees its features anyway, and software
/// shows it. Empty where there is none.
pub fn brand() -> [[u32; 4]; 3] {
    // Newer compilers have it as a safe function.
    #[allow(unused_unsafe)]
    let read = |leaf| {
        // SAFETY: every processor of this architecture has CPUID.
        let found = unsafe { __cpuid(leaf) };
        [found.eax, found.ebx, found.ecx, found.edx]
    };
    let [max, ..] = read(0x8000_0000);
    BRAND.map(|leaf| if max >= leaf { read(leaf) } else { [0; 4] })
}

/// Adds what KVM leaves to its user to say.
pub fn add_features(entries: &mut [kvm_cpuid_entry2], host: Host) {
    if let Some(features) = find_mut(entries, 1, 0) {
        features.ecx &= !TSC_DEADLINE;
        features.ecx |= HYPERVISOR | if host.deadline { TSC_DEADLINE } else { 0 };
    }
    for (leaf, registers) in BRAND.into_iter().zip(host.brand) {
        if let Some(name) = find_mut(entries, leaf, 0) {
            [name.eax, name.ebx, name.ecx, name.edx] = registers;
        }
    }
}

/// Takes the AMX tiles out of the state that XSAVE saves, and their size out of what that needs at most.
pub fn remove_tile_state(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| entry.function != 0xD || !TILE_STATES.contains(&entry.index));
    let is_user_state =
        |entry: &&kvm_cpuid_entry2| entry.function == 0xD && entry.index >= 2 && entry.ecx & 1 == 0;
    let bytes = entries
        .iter()
        .filter(is_user_state)
        .map(|entry| entry.ebx.saturating_add(entry.eax))
        .fold(LEGACY_STATE_BYTES, u32::max);
    if let Some(sizes) = find_mut(entries, 0xD, 0) {
        sizes.eax &= !TILE_STATES.iter().fold(0, |mask, number| mask | bit(*number));
        sizes.ecx = bytes;
        // EBX is the size for what is switched on; KVM keeps it true at run time.
        sizes.ebx = sizes.ebx.min(bytes);
    }
}
