//! vCPUs of this machine's KVM, which need not be able to run Linux.

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_msr_entry,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use strato_virtio::GuestRam;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::arch::x86_64::registers::Mode;
use crate::arch::{Topology, prepare_vm};

const RAM_BYTES: usize = 2 << 20;
const ENTRY: u64 = 0x10_0000;
const INFO: u64 = 0x1234_5000;

struct Vm {
    kvm: Kvm,
    fd: VmFd,
    // The VM's memory: it must live as long.
    ram: GuestRam,
}

/// A VM that is ready for vCPUs, if this machine has a KVM.
fn vm() -> Option<Vm> {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("SKIPPED: no /dev/kvm here");
        return None;
    };
    let fd = kvm.create_vm().unwrap();
    prepare_vm(&fd).unwrap();
    let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
    fd.enable_cap(&split).unwrap();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
    let region = ram.iter().next().unwrap();
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: ram.get_host_address(GuestAddress(0)).unwrap() as u64,
        flags: 0,
    };
    // SAFETY: the mapping is `ram`'s, which lives in the same value as the VM.
    unsafe { fd.set_user_memory_region(slot) }.unwrap();
    Some(Vm { kvm, fd, ram })
}

fn model(vm: &Vm, cpus: u32) -> CpuModel {
    CpuModel::new(&vm.kvm, &vm.fd, Topology::new(cpus, 1).unwrap()).unwrap()
}

fn vcpu(vm: &Vm, index: u32, model: &CpuModel) -> VcpuFd {
    let vcpu = vm.fd.create_vcpu(index.into()).unwrap();
    configure_vcpu(&vcpu, index, model).unwrap();
    reset_vcpu(&vcpu, index, model).unwrap();
    vcpu
}

/// Every MSR that KVM knows or that [`dirty`] changes, but those that tell the time: the TSC, and clocks of Hyper-V.
fn all_msrs(vm: &Vm) -> Vec<u32> {
    let tells_time = |index: u32| index == 0x10 || (0x4000_0000..0x4000_0200).contains(&index);
    let known = vm.kvm.get_msr_index_list().unwrap().as_slice().to_vec();
    let mut msrs: Vec<_> = known.into_iter().filter(|index| !tells_time(*index)).collect();
    msrs.extend([0x200, 0x201, 0x250, 0x277, 0x2FF]);
    msrs
}

/// Everything about a vCPU that can be asked for, but the time.
fn state(vm: &Vm, vcpu: &VcpuFd) -> String {
    let read = |index| Some((index, msr::get(vcpu, index).ok()?));
    let msrs: Vec<_> = all_msrs(vm).into_iter().filter_map(read).collect();
    let sregs = vcpu.get_sregs().unwrap();
    format!(
        "{:x?}\n{sregs:x?}\n{:x?}\n{:x?}\n{:x?}\n{:x?}\n{:?}\n{msrs:x?}\n{:x?}",
        vcpu.get_regs().unwrap(),
        vcpu.get_fpu().unwrap(),
        vcpu.get_xcrs().unwrap(),
        vcpu.get_debug_regs().unwrap(),
        vcpu.get_vcpu_events().unwrap(),
        vcpu.get_mp_state().unwrap(),
        vcpu.get_lapic().unwrap().regs,
    )
}

#[test]
fn reset_leaves_nothing_of_the_former_life() {
    let Some(vm) = vm() else { return };
    let model = model(&vm, 2);
    for index in [0, 1] {
        let vcpu = vcpu(&vm, index, &model);
        let fresh = state(&vm, &vcpu);
        dirty(&vcpu);
        assert_ne!(state(&vm, &vcpu), fresh);
        reset_vcpu(&vcpu, index, &model).unwrap();
        assert_eq!(state(&vm, &vcpu), fresh, "vCPU {index}");
    }
}

/// As a running kernel leaves a vCPU: long mode, x2APIC with a timer, a clock, a pending interrupt.
fn dirty(vcpu: &VcpuFd) {
    let power_on = vcpu.get_sregs().unwrap();
    let mut sregs = registers::special(Mode::Long, &power_on);
    sregs.apic_base |= 1 << 10;
    sregs.cr8 = 3;
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&registers::general(Mode::Long, ENTRY, INFO)).unwrap();
    let mut fpu = vcpu.get_fpu().unwrap();
    fpu.xmm[3] = [0xA5; 16];
    fpu.mxcsr = 0x1FA0;
    vcpu.set_fpu(&fpu).unwrap();
    let mut debug = vcpu.get_debug_regs().unwrap();
    debug.db[1] = 0x1000;
    vcpu.set_debug_regs(&debug).unwrap();
    let others = [(0x400, 0), (0x3B, 0x1000), (0xC000_0103, 7), (0x4B56_4D04, 0x3001)];
    let entries = [(0x174, 0x10), (0x277, 0x0606_0606_0606_0606), (0xC000_0082, 0xFFFF_FFFF_8100_0000)]
        .into_iter()
        .chain([(0x2FF, 0), (0x4B56_4D01, 0x2001), (0xC000_0102, 0x1000)])
        .chain([(0x200, 0x6), (0x201, 0xF_C000_0800), (0x250, 0x0606_0606_0606_0606)])
        .chain(others)
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect::<Vec<_>>();
    let msrs = kvm_bindings::Msrs::from_entries(&entries).unwrap();
    assert_eq!(vcpu.set_msrs(&msrs).unwrap(), entries.len());
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[0x380] = 0x7F;
    lapic.regs[0xF1] = 1;
    vcpu.set_lapic(&lapic).unwrap();
    let mut events = vcpu.get_vcpu_events().unwrap();
    events.nmi.pending = 1;
    vcpu.set_vcpu_events(&events).unwrap();
    vcpu.set_mp_state(kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_HALTED }).unwrap();
}

/// The registers of a leaf.
fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
    let entry = entries.iter().find(|entry| (entry.function, entry.index) == (function, index))?;
    Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
}

#[test]
fn cpuid_that_kvm_keeps_is_the_models() {
    let Some(vm) = vm() else { return };
    let model = model(&vm, 6);
    for index in [0, 5] {
        let vcpu = vcpu(&vm, index, &model);
        let kept = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let expected = model.cpuid(index).unwrap();
        let structured = |cpuid: &CpuId| leaf(cpuid.as_slice(), 7, 0).unwrap_or_default()[1];
        if structured(&kept) & !structured(&expected) != 0 {
            eprintln!("SKIPPED: this KVM shows guests features that it says it does not support");
            return;
        }
        for entry in expected.as_slice() {
            let mut expected = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            let kept = leaf(kept.as_slice(), entry.function, entry.index);
            let kept = kept.unwrap_or_else(|| panic!("{entry:x?} is not there"));
            if entry.function == 0xD {
                // The size of what is switched on is kept true by KVM.
                expected[1] = kept[1];
            }
            assert_eq!(kept, expected, "leaf {:#x}.{}", entry.function, entry.index);
        }
    }
}

#[test]
fn first_vcpu_is_the_bootstrap_processor_and_the_others_wait() {
    let Some(vm) = vm() else { return };
    let model = model(&vm, 2);
    let expected = [(0xFEE0_0900, KVM_MP_STATE_RUNNABLE), (0xFEE0_0800, KVM_MP_STATE_UNINITIALIZED)];
    for (index, expected) in (0..).zip(expected) {
        let vcpu = vcpu(&vm, index, &model);
        let found = (vcpu.get_sregs().unwrap().apic_base, vcpu.get_mp_state().unwrap().mp_state);
        assert_eq!(found, expected);
        assert_eq!(msr::get(&vcpu, 0x2FF).unwrap(), 0x806);
        assert_eq!(msr::get(&vcpu, 0x1A0).unwrap() & 1, 1);
        // MCG_CAP: one bank.
        assert_eq!(msr::get(&vcpu, 0x179).unwrap(), 1);
    }
}

#[test]
fn performance_counters_are_off_where_kvm_can_do_without() {
    let Some(vm) = vm() else { return };
    let offered = vm.fd.check_extension_raw(kvm_bindings::KVM_CAP_PMU_CAPABILITY.into());
    if offered & 1 == 0 {
        eprintln!("SKIPPED: this KVM cannot switch performance counters off");
        return;
    }
    let vcpu = vcpu(&vm, 0, &model(&vm, 1));
    // IA32_PERFEVTSEL0 and AMD's first counter read as zero at most.
    for index in [0x186, 0xC001_0200] {
        assert_eq!(msr::get(&vcpu, index).unwrap_or(0), 0, "{index:#x}");
    }
}

/// Runs the entry's code until it stops the machine, and returns what it sent to port 0x10.
fn run(mode: Mode, code: &[u8]) -> Option<Vec<u32>> {
    let vm = vm()?;
    registers::write_tables(&vm.ram, mode).unwrap();
    vm.ram.write_slice(code, GuestAddress(ENTRY)).unwrap();
    let model = model(&vm, 1);
    let mut vcpu = vcpu(&vm, 0, &model);
    enter(&vcpu, &BootEntry { mode, addr: ENTRY, info_addr: INFO }).unwrap();
    let mut sent = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(0x10, data) => sent.push(u32::from_le_bytes(data.try_into().unwrap())),
            VcpuExit::IoOut(0x11, _) => return Some(sent),
            exit => panic!("{exit:?}, after {sent:x?}"),
        }
    }
}

/// `mov dx, 0x10`, the same in both modes; `out dx, eax`; `out 0x11, al`.
const PORT: &[u8] = &[0x66, 0xBA, 0x10, 0x00];
const SEND: &[u8] = &[0xEF];
const STOP: &[u8] = &[0xE6, 0x11];

#[test]
fn protected_entry_begins_with_the_info_in_ebx_and_without_paging() {
    // mov eax, ebx; mov eax, cr0; mov eax, cr4.
    let code =
        [PORT, &[0x89, 0xD8], SEND, &[0x0F, 0x20, 0xC0], SEND, &[0x0F, 0x20, 0xE0], SEND, STOP].concat();
    let Some(sent) = run(Mode::Protected, &code) else { return };
    assert_eq!((sent[0], sent[1] & 0x8000_0001, sent[2]), (INFO as u32, 1, 0));
}

#[test]
fn long_entry_begins_with_the_info_in_rsi_and_memory_mapped() {
    // mov eax, esi; mov eax, [0x1FFFFC] by an absolute address of 64 bits; mov rax, cs.
    let load = [&[0xA1][..], &0x1F_FFFCu64.to_le_bytes()].concat();
    let code = [PORT, &[0x89, 0xF0], SEND, &load, SEND, &[0x8C, 0xC8], SEND, STOP].concat();
    let Some(sent) = run(Mode::Long, &code) else { return };
    assert_eq!(sent, [INFO as u32, 0, 0x10]);
}
