//! What CPUID says about a vCPU's place: its APIC id, its core, what it shares.
//!
//! Guests compare these leaves with each other, with the APIC's own id and with the MADT; they must agree for every
//! vCPU. All topologies here are one package of equal cores, each with caches of levels 1 and 2 of its own, and
//! whatever is above shared by all.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{Topology, Vendor, find, find_mut};

/// HTT of leaf 1, EDX: the package has more than one processor (Intel SDM volume 3, section 9.9.3).
const HTT: u32 = 1 << 28;
/// CmpLegacy of leaf 0x8000_0001, ECX: AMD's word for it (APM volume 3, appendix E.5.1).
const CMP_LEGACY: u32 = 1 << 1;
/// TopologyExtensions of leaf 0x8000_0001, ECX: there are leaves 0x8000_001D and 0x8000_001E.
const TOPOEXT: u32 = 1 << 22;

/// Types of level in leaves 0xB and 0x1F (Intel SDM volume 2A, CPUID).
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The entries as vCPU `index` has them.
pub fn placed(
    entries: &[kvm_cpuid_entry2],
    vendor: Vendor,
    topology: Topology,
    index: u32,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries = entries.to_vec();
    let is_multiple = topology.num_cpus() > 1;
    if let Some(leaf) = find_mut(&mut entries, 0x1, 0) {
        let ids = topology.package_ids().min(0xFF);
        leaf.ebx = leaf.ebx & 0xFFFF | ids << 16 | index << 24;
        leaf.edx = with_bit(leaf.edx, HTT, is_multiple);
    }
    share_caches(&mut entries, 0x4, topology);
    add_levels(&mut entries, topology, index);
    if let Some(leaf) = find_mut(&mut entries, 0x8000_0001, 0) {
        leaf.ecx = with_bit(leaf.ecx, CMP_LEGACY, is_multiple && vendor == Vendor::Amd);
    }
    if let Some(leaf) = find_mut(&mut entries, 0x8000_0008, 0) {
        // AMD: processors less one, and the bits of the APIC id that number them. Reserved elsewhere.
        let amd = (topology.num_cpus() - 1) | topology.package_bits() << 12;
        leaf.ecx = if vendor == Vendor::Amd { amd } else { 0 };
    }
    place_extended(&mut entries, vendor, topology, index);
    entries
}

fn with_bit(value: u32, bit: u32, set: bool) -> u32 {
    if set { value | bit } else { value & !bit }
}

/// Leaf 4, and AMD's 0x8000_001D with the same fields: EAX bits 4–0 type, 7–5 level, 25–14 ids that share the cache
/// less one; Intel only: 31–26 ids of cores in the package less one.
fn share_caches(entries: &mut [kvm_cpuid_entry2], leaf: u32, topology: Topology) {
    for cache in entries.iter_mut().filter(|entry| entry.function == leaf && entry.eax & 0x1F != 0) {
        let is_private = (cache.eax >> 5 & 0x7) <= 2;
        let sharers = if is_private { topology.threads_per_core() } else { topology.package_ids() };
        let cores = if leaf == 0x4 { (topology.core_ids() - 1).min(0x3F) } else { 0 };
        cache.eax = cache.eax & 0x3FFF | (sharers - 1) << 14 | cores << 26;
    }
}

/// Leaves 0xB and 0x1F, when the processor knows them: a sub-leaf for each level, and the id.
fn add_levels(entries: &mut Vec<kvm_cpuid_entry2>, topology: Topology, index: u32) {
    let max_leaf = find(entries, 0, 0).map_or(0, |leaf| leaf.eax);
    let levels = [
        (LEVEL_THREAD, topology.thread_bits(), topology.threads_per_core()),
        (LEVEL_CORE, topology.package_bits(), topology.num_cpus()),
    ];
    for function in [0xB, 0x1F].into_iter().filter(|leaf| *leaf <= max_leaf) {
        for (subleaf, (kind, shift, processors)) in (0..).zip(levels) {
            entries.push(kvm_cpuid_entry2 {
                function,
                index: subleaf,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: processors,
                ecx: subleaf | kind << 8,
                edx: index,
                ..kvm_cpuid_entry2::default()
            });
        }
    }
}

/// AMD's extended topology: leaves 0x8000_001D and 0x8000_001E, and the bit that says whether they are there.
fn place_extended(entries: &mut Vec<kvm_cpuid_entry2>, vendor: Vendor, topology: Topology, index: u32) {
    let max_leaf = find(entries, 0x8000_0000, 0).map_or(0, |leaf| leaf.eax);
    let offered = find(entries, 0x8000_0001, 0).is_some_and(|leaf| leaf.ecx & TOPOEXT != 0);
    if vendor == Vendor::Amd && offered && max_leaf >= 0x8000_001E {
        share_caches(entries, 0x8000_001D, topology);
        entries.push(kvm_cpuid_entry2 {
            function: 0x8000_001E,
            // APIC id; core and threads per core less one; node 0 of one.
            eax: index,
            ebx: index >> topology.thread_bits() | (topology.threads_per_core() - 1) << 8,
            ..kvm_cpuid_entry2::default()
        });
        return;
    }
    entries.retain(|entry| entry.function != 0x8000_001D);
    if let Some(leaf) = find_mut(entries, 0x8000_0001, 0) {
        leaf.ecx &= !TOPOEXT;
    }
}
