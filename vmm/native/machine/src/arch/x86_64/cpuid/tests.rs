//! Models made from what KVM reports on hosts of both kinds, and from whatever it reports here.

use std::collections::BTreeMap;

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::*;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
}

fn indexed(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..leaf(function, index, registers) }
}

fn identity(max: u32, name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let part = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    leaf(0, 0, [max, part(0), part(8), part(4)])
}

/// A host of Intel, with every bit set that a host can have.
fn intel() -> Vec<kvm_cpuid_entry2> {
    let all = u32::MAX;
    let cache = |level: u32, kind: u32| 0xFC00_0000 | 63 << 14 | 1 << 8 | level << 5 | kind;
    vec![
        identity(0x20, b"GenuineIntel"),
        leaf(0x1, 0, [0x8_06F8, 0x5510_0800, all, all]),
        leaf(0x3, 0, [all; 4]),
        indexed(0x4, 0, [cache(1, 1), 0x2C0_003F, 63, 0]),
        indexed(0x4, 1, [cache(1, 2), 0x1C0_003F, 63, 0]),
        indexed(0x4, 2, [cache(2, 3), 0x3C0_003F, 2047, 0]),
        indexed(0x4, 3, [cache(3, 3), 0x380_003F, 0x1_FFFF, 4]),
        indexed(0x4, 4, [0; 4]),
        leaf(0x5, 0, [all; 4]),
        leaf(0x6, 0, [4, 0, 0, 0]),
        indexed(0x7, 0, [2, all, all, all]),
        indexed(0x7, 1, [all, 0, 0, all]),
        indexed(0x7, 2, [0, 0, 0, all]),
        leaf(0xA, 0, [all; 4]),
        indexed(0xB, 0, [0, 0, 0, 0x55]),
        indexed(0xD, 0, [0x6_02E7, 11008, 11008, 0]),
        indexed(0xD, 1, [0x1F, 11008, 0, 0]),
        indexed(0xD, 2, [256, 576, 0, 0]),
        indexed(0xD, 9, [8, 2688, 0, 0]),
        indexed(0xD, 17, [64, 2752, 2, 0]),
        indexed(0xD, 18, [8192, 2816, 6, 0]),
        indexed(0xF, 0, [all; 4]),
        leaf(0x10, 0, [all; 4]),
        indexed(0x12, 0, [all; 4]),
        indexed(0x14, 0, [all; 4]),
        indexed(0x1A, 0, [all; 4]),
        indexed(0x1D, 0, [all; 4]),
        indexed(0x1E, 0, [all; 4]),
        indexed(0x1F, 0, [0, 0, 0, 0x55]),
        leaf(0x4000_0000, 0, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]),
        leaf(0x4000_0001, 0, [all; 4]),
        leaf(0x4000_0002, 0, [all; 4]),
        leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2C10_0800]),
        leaf(0x8000_0003, 0, [0; 4]),
        leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
        leaf(0x8000_0008, 0, [0x30_302E, 0, 0x70FF, 0]),
    ]
}

/// A host of AMD.
fn amd() -> Vec<kvm_cpuid_entry2> {
    let all = u32::MAX;
    let cache = |level: u32, kind: u32| 31 << 14 | 1 << 8 | level << 5 | kind;
    let mut entries: Vec<_> = intel().into_iter().filter(|entry| entry.function != 0x4).collect();
    entries.retain(|entry| entry.function < 0x8000_0000 && entry.function != 0);
    entries.extend([
        identity(0x10, b"AuthenticAMD"),
        leaf(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, all, all]),
        leaf(0x8000_0008, 0, [0x30_3030, all, 0xFFFF, 0]),
        leaf(0x8000_000A, 0, [all; 4]),
        indexed(0x8000_001D, 0, [cache(1, 1), 0, 0, 0]),
        indexed(0x8000_001D, 1, [cache(3, 3), 0, 0, 0]),
        indexed(0x8000_001D, 2, [0; 4]),
        leaf(0x8000_001E, 0, [0x55, 0x1FF, 0x703, 0]),
        leaf(0x8000_001F, 0, [all; 4]),
        leaf(0x8000_0021, 0, [0x45, 0, 0, 0]),
        leaf(0x8000_0022, 0, [all; 4]),
    ]);
    entries
}

const HOST: Host = Host { deadline: true, brand: [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]] };

fn entries(host: &[kvm_cpuid_entry2], cpus: u32, threads: u32, index: u32) -> Vec<kvm_cpuid_entry2> {
    let topology = Topology::new(cpus, threads).unwrap();
    let model = CpuModel::from_supported(host, HOST, topology).unwrap();
    model.cpuid(index).unwrap().as_slice().to_vec()
}

fn get(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let mut found = entries.iter().filter(|entry| (entry.function, entry.index) == (function, index));
    let entry = found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn has(entries: &[kvm_cpuid_entry2], function: u32) -> bool {
    entries.iter().any(|entry| entry.function == function)
}

/// Leaves that no guest may have.
const GONE_LEAVES: [u32; 14] = [
    0x3,
    0x5,
    0xA,
    0xF,
    0x10,
    0x12,
    0x14,
    0x1A,
    0x1D,
    0x1E,
    0x8000_000A,
    0x8000_001F,
    0x8000_0022,
    0x4000_0002,
];

/// A register: leaf, sub-leaf, and 0 to 3 for EAX to EDX.
type Place = (u32, u32, usize);

/// Bits that no guest may have: what `leaves::REMOVED` says with its reasons, a second time, so that nothing gets lost
/// there unnoticed.
const GONE_BITS: [(Place, &[u32]); 9] = [
    ((0x1, 0, 2), &[2, 3, 4, 5, 6, 7, 8, 15, 27]),
    ((0x7, 0, 1), &[2, 4, 11, 12, 15, 25]),
    ((0x7, 0, 2), &[4, 5, 30]),
    ((0x7, 0, 3), &[11, 13, 15, 16, 18, 19, 22, 24, 25]),
    ((0x7, 1, 0), &[21]),
    ((0x7, 1, 3), &[8]),
    ((0xD, 1, 0), &[4]),
    ((0x8000_0001, 0, 2), &[2, 3, 10, 12, 13, 15, 19, 23, 24, 26, 27, 28, 29]),
    ((0x8000_0008, 0, 1), &[4]),
];

/// A host, with every bit set in the registers from which bits are removed.
fn with_all_bits(mut host: Vec<kvm_cpuid_entry2>) -> Vec<kvm_cpuid_entry2> {
    for ((function, index, register), _) in GONE_BITS {
        let entry = find_mut(&mut host, function, index).unwrap_or_else(|| panic!("no leaf {function:#x}"));
        *[&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx][register] = u32::MAX;
    }
    host
}

#[test]
fn what_must_not_reach_a_guest_is_gone_on_either_kind_of_host() {
    for host in [intel(), amd()].map(with_all_bits) {
        let guest = entries(&host, 2, 1, 0);
        for function in GONE_LEAVES {
            assert!(!has(&guest, function), "{function:#x}");
        }
        for ((function, index, register), bits) in GONE_BITS {
            let value = get(&guest, function, index)[register];
            for bit in bits {
                assert_eq!(value >> bit & 1, 0, "leaf {function:#x}.{index} register {register} bit {bit}");
            }
        }
        // What guests want is still there: AVX2, AVX-512F, SPEC_CTRL.
        let [_, ebx, _, edx] = get(&guest, 7, 0);
        assert_eq!((ebx >> 5 & 1, ebx >> 16 & 1, edx >> 26 & 1), (1, 1, 1));
    }
    // Those are no leaves and bits that are gone because no host had them.
    let hosts = [intel(), amd()].concat();
    assert!(GONE_LEAVES.iter().all(|function| has(&hosts, *function)));
}

#[test]
fn every_removal_is_one_that_is_tested() {
    let mut removed = BTreeMap::<Place, Vec<u32>>::new();
    for removal in leaves::REMOVED {
        let place = (removal.leaf, removal.subleaf, removal.register as usize);
        removed.entry(place).or_default().extend(removal.bits);
    }
    removed.values_mut().for_each(|bits| bits.sort_unstable());
    assert_eq!(removed, GONE_BITS.map(|(place, bits)| (place, bits.to_vec())).into());
}

#[test]
fn msr_of_intel_is_shown_on_intel_only() {
    let shown = |host: &[kvm_cpuid_entry2]| get(&entries(host, 1, 1, 0), 7, 0)[3] >> 29 & 1;
    assert_eq!((shown(&intel()), shown(&amd())), (1, 0));
}

#[test]
fn hypervisor_and_deadline_timer_are_added() {
    let topology = Topology::new(1, 1).unwrap();
    let mut host = intel();
    find_mut(&mut host, 1, 0).unwrap().ecx = 0;
    for (deadline, expected) in [(true, 1 << 31 | 1 << 24), (false, 1 << 31)] {
        let model = CpuModel::from_supported(&host, Host { deadline, ..HOST }, topology).unwrap();
        assert_eq!(get(model.cpuid(0).unwrap().as_slice(), 1, 0)[2], expected);
    }
}

#[test]
fn name_of_the_processor_is_the_hosts() {
    assert_eq!(get(&entries(&intel(), 1, 1, 0), 0x8000_0003, 0), [5, 6, 7, 8]);
    let [_, brand, _] = leaves::brand();
    assert!(brand.map(u32::to_le_bytes).concat().is_ascii());
}

#[test]
fn paravirtual_features_are_those_that_were_chosen() {
    let guest = entries(&intel(), 1, 1, 0);
    assert_eq!(get(&guest, 0x4000_0001, 0), [0x0100_7AFB, 0, 0, 0]);
    assert_eq!(get(&guest, 0x4000_0000, 0)[0], 0x4000_0001);
}

#[test]
fn tiles_are_neither_in_the_state_nor_in_its_size() {
    let guest = entries(&intel(), 1, 1, 0);
    assert_eq!(get(&guest, 0xD, 0), [0x2E7, 2696, 2696, 0]);
    assert_eq!(get(&guest, 0xD, 1)[0], 0xF);
    assert!(!guest.iter().any(|entry| entry.function == 0xD && [17, 18].contains(&entry.index)));
    assert_eq!(get(&guest, 0xD, 9), [8, 2688, 0, 0]);
}

#[test]
fn levels_agree_for_every_vcpu() {
    for (cpus, threads) in [(1, 1), (2, 1), (2, 2), (6, 2), (3, 1), (255, 1), (64, 2)] {
        for index in [0, cpus / 2, cpus - 1] {
            let guest = entries(&intel(), cpus, threads, index);
            let [_, ebx, _, edx] = get(&guest, 1, 0);
            assert_eq!((ebx >> 24, ebx & 0xFF00), (index, 0x800));
            assert_eq!(edx >> 28 & 1, u32::from(cpus > 1));
            let ids = cpus.next_power_of_two();
            assert_eq!(ebx >> 16 & 0xFF, ids.min(255));
            for function in [0xB, 0x1F] {
                let thread = [threads.trailing_zeros(), threads, 0x100, index];
                assert_eq!(get(&guest, function, 0), thread);
                assert_eq!(get(&guest, function, 1), [ids.trailing_zeros(), cpus, 0x201, index]);
            }
        }
    }
}

#[test]
fn caches_are_shared_by_threads_and_the_last_one_by_all() {
    let guest = entries(&intel(), 6, 2, 3);
    let sharing = |entries: &[kvm_cpuid_entry2], function, index| {
        let eax = get(entries, function, index)[0];
        (eax >> 14 & 0xFFF, eax >> 26)
    };
    for index in 0..3 {
        assert_eq!(sharing(&guest, 4, index), (1, 3), "{index}");
    }
    assert_eq!(sharing(&guest, 4, 3), (7, 3));
    assert_eq!(get(&guest, 4, 4), [0; 4]);
    assert_eq!(get(&guest, 4, 2)[1..], [0x3C0_003F, 2047, 0]);
    let guest = entries(&amd(), 6, 2, 3);
    assert_eq!((sharing(&guest, 0x8000_001D, 0), sharing(&guest, 0x8000_001D, 1)), ((1, 0), (7, 0)));
}

#[test]
fn leaves_of_amd_agree_with_the_others() {
    let guest = entries(&amd(), 6, 2, 5);
    let [_, _, ecx, _] = get(&guest, 0x8000_0001, 0);
    assert_eq!((ecx >> 1 & 1, ecx >> 22 & 1), (1, 1));
    assert_eq!(get(&guest, 0x8000_0008, 0)[2], 0x3005);
    assert_eq!(get(&guest, 0x8000_001E, 0), [5, 0x102, 0, 0]);
    assert_eq!(get(&guest, 0xB, 1), [3, 6, 0x201, 5]);
    // This processor ends at leaf 0x10.
    assert!(!has(&guest, 0x1F));
    let single = entries(&amd(), 1, 1, 0);
    assert_eq!(get(&single, 0x8000_0001, 0)[2] >> 1 & 1, 0);
}

#[test]
fn processor_without_extended_topology_does_not_claim_it() {
    let mut host = amd();
    find_mut(&mut host, 0x8000_0000, 0).unwrap().eax = 0x8000_001A;
    let guest = entries(&host, 2, 1, 0);
    assert_eq!(get(&guest, 0x8000_0001, 0)[2] >> 22 & 1, 0);
    assert!(!has(&guest, 0x8000_001D) && !has(&guest, 0x8000_001E));
    let intel = entries(&intel(), 2, 1, 0);
    assert_eq!((get(&intel, 0x8000_0001, 0)[2], get(&intel, 0x8000_0008, 0)[2]), (0x121, 0));
}

#[test]
fn kvm_without_a_processor_is_an_error() {
    let failure = CpuModel::from_supported(&[], HOST, Topology::new(1, 1).unwrap()).unwrap_err();
    assert_eq!(failure.to_string(), "KVM supports no CPUID leaf 0, so it can run no processor");
}
