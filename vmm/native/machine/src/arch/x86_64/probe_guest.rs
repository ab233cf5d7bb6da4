//! The guest of the probe: 64-bit kernel mode with paging, through what no kernel can do without.
//!
//! It tells each step by a byte on a port before it tries it. See [`crate::probe`].
#![expect(unsafe_code, reason = "assembly")]

use std::arch::{asm, global_asm};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};
use strato_plumbing::{Failure, Result};

/// All the RAM it has.
pub const RAM_BYTES: u64 = 2 << 20;
/// Where it tells its steps.
pub const PORT: u64 = 0x80;

/// What it tells apart from steps with a name.
pub const LOOP_BEGINS: u8 = 0x40;
/// See [`LOOP_BEGINS`].
pub const LOOP_ENDS: u8 = 0x41;
/// An instruction did not do what it should.
pub const WRONG: u8 = 0x42;
/// All went well.
pub const DONE: u8 = 0x43;

const CODE: u64 = 0x1000;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const PML4: u64 = 0x4000;
const PDPT: u64 = 0x5000;
const PD: u64 = 0x6000;
/// Stack below, scratch memory above.
const DATA: u64 = 0x8000;

/// Turns of the loop, two instructions each.
const TURNS: u32 = 50_000;

/// Page table entry bits: present, writable, 2 MiB page (Intel SDM volume 3, 4.5).
const TABLE: u64 = 0x3;
const LARGE: u64 = 0x83;

/// Control register bits (Intel SDM volume 3, 2.5) and EFER (2.2.1).
const CR0: u64 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 1 | 1; // PG, WP, NE, MP, PE
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER: u64 = 1 << 10 | 1 << 8; // LMA, LME
/// CPUID.1:ECX.XSAVE.
const CPUID_XSAVE: u32 = 1 << 26;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

// RBX: scratch memory; RBP: whether there is XSAVE. Steps are numbered as in `name`.
global_asm!(
    ".pushsection .rodata.strato_probe",
    ".hidden strato_probe_begin, strato_probe_end, strato_probe_handler",
    ".globl strato_probe_begin, strato_probe_end, strato_probe_handler",
    "strato_probe_begin:",
    // 1: the descriptor tables that KVM was given are loaded anew
    "mov al, 1",
    "out 0x80, al",
    "sub rsp, 16",
    "sgdt [rsp]",
    "lgdt [rsp]",
    "sidt [rsp]",
    "lidt [rsp]",
    "add rsp, 16",
    "mov eax, 0x10",
    "mov ss, eax",
    "mov ds, eax",
    // 2: a model-specific register (KERNEL_GS_BASE), and swapgs
    "mov al, 2",
    "out 0x80, al",
    "mov ecx, 0xc0000102",
    "mov eax, 0x12345000",
    "xor edx, edx",
    "wrmsr",
    "swapgs",
    "mov ecx, 0xc0000101",
    "rdmsr",
    "cmp eax, 0x12345000",
    "jne 9f",
    "swapgs",
    // 3: a page table is switched, one page forgotten
    "mov al, 3",
    "out 0x80, al",
    "mov rax, cr3",
    "mov cr3, rax",
    "invlpg [rbx]",
    "mov rax, cr4",
    "mov cr4, rax",
    // 4: sixteen bytes are exchanged
    "mov al, 4",
    "out 0x80, al",
    "mov rsi, rbx",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 7",
    "mov ecx, 9",
    "lock cmpxchg16b [rsi]",
    "mov rbx, rsi",
    "jne 9f",
    "cmp qword ptr [rbx + 8], 9",
    "jne 9f",
    // 5: a breakpoint comes and goes through the interrupt table
    "mov al, 5",
    "out 0x80, al",
    "xor edi, edi",
    "int3",
    "cmp edi, 3",
    "jne 9f",
    // 6: a page is copied
    "mov al, 6",
    "out 0x80, al",
    "mov rsi, rbx",
    "lea rdi, [rbx + 0x1000]",
    "mov ecx, 4096",
    "cld",
    "rep movsb",
    "cmp qword ptr [rbx + 0x1000], 7",
    "jne 9f",
    // 7: floating-point state is saved and restored
    "mov al, 7",
    "out 0x80, al",
    "test ebp, ebp",
    "jz 2f",
    "xor ecx, ecx",
    "mov eax, 3",
    "xor edx, edx",
    "xsetbv",
    "mov eax, 3",
    "xor edx, edx",
    "xsave64 [rbx + 0x2000]",
    "xrstor64 [rbx + 0x2000]",
    "2:",
    "movaps xmm0, xmm1",
    // The loop, three times.
    "mov r8d, 3",
    "3:",
    "mov al, 0x40",
    "out 0x80, al",
    "mov ecx, {turns}",
    "4:",
    "dec ecx",
    "jnz 4b",
    "mov al, 0x41",
    "out 0x80, al",
    "dec r8d",
    "jnz 3b",
    "mov al, 0x43",
    "out 0x80, al",
    "5:",
    "hlt",
    "jmp 5b",
    "9:",
    "mov al, 0x42",
    "out 0x80, al",
    "jmp 5b",
    "strato_probe_handler:",
    "mov edi, 3",
    "iretq",
    "strato_probe_end:",
    ".popsection",
    turns = const TURNS,
);

unsafe extern "C" {
    static strato_probe_begin: u8;
    static strato_probe_handler: u8;
    static strato_probe_end: u8;
}

/// What a step is about.
pub fn name(step: u8) -> &'static str {
    match step {
        1 => "lgdt and lidt",
        2 => "wrmsr, rdmsr and swapgs",
        3 => "a new CR3 and CR4",
        4 => "cmpxchg16b",
        5 => "int3",
        6 => "rep movsb",
        7 => "xsave and xrstor",
        _ => "an unknown step",
    }
}

/// The loop of the guest, here.
pub fn same_loop() {
    // SAFETY: it counts a register down and does nothing else.
    unsafe {
        asm!("2:", "dec {turns:e}", "jnz 2b", turns = inout(reg) TURNS => _, options(nomem, nostack));
    }
}

fn code() -> (&'static [u8], u64) {
    let (begin, handler, end) =
        (&raw const strato_probe_begin, &raw const strato_probe_handler, &raw const strato_probe_end);
    // SAFETY: the symbols are the ends of one section's contents, above.
    let bytes = unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) };
    (bytes, (handler as usize - begin as usize) as u64)
}

/// What goes into RAM: address and bytes.
pub fn image() -> Vec<(u64, Vec<u8>)> {
    let (bytes, handler) = code();
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    // An interrupt gate of 64-bit mode (Intel SDM volume 3, 6.14.1) for vector 3.
    let target = CODE + handler;
    let gate =
        (target & 0xffff) | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32 | (target >> 16 & 0xffff) << 48;
    vec![
        (CODE, bytes.to_vec()),
        (IDT + 3 * 16, words(&[gate, target >> 32])),
        // Null, 64-bit code, data (Intel SDM volume 3, 3.4.5).
        (GDT, words(&[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff])),
        (PML4, words(&[PDPT | TABLE])),
        (PDPT, words(&[PD | TABLE])),
        (PD, words(&[LARGE])),
    ]
}

/// Puts a new vCPU at the guest's beginning.
///
/// # Errors
/// What KVM says.
pub fn enter(kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
    let failure =
        |what: &str, errno| Failure::new(format!("Cannot set the {what} of the probe's vCPU"), errno);
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| failure("CPUID", error.errno()))?;
    let xsave = cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_XSAVE != 0);
    vcpu.set_cpuid2(&cpuid).map_err(|error| failure("CPUID", error.errno()))?;
    let mut special = vcpu.get_sregs().map_err(|error| failure("registers", error.errno()))?;
    let segment = |selector, type_, long| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = segment(CODE_SELECTOR, 11, 1);
    for place in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *place = segment(DATA_SELECTOR, 3, 0);
    }
    (special.gdt.base, special.gdt.limit) = (GDT, 3 * 8 - 1);
    (special.idt.base, special.idt.limit) = (IDT, 4 * 16 - 1);
    special.cr0 = CR0;
    special.cr3 = PML4;
    special.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | if xsave { CR4_OSXSAVE } else { 0 };
    special.efer = EFER;
    vcpu.set_sregs(&special).map_err(|error| failure("registers", error.errno()))?;
    let mut registers = vcpu.get_regs().map_err(|error| failure("registers", error.errno()))?;
    (registers.rip, registers.rsp, registers.rflags) = (CODE, DATA, 2);
    (registers.rbx, registers.rbp) = (DATA, u64::from(xsave));
    vcpu.set_regs(&registers).map_err(|error| failure("registers", error.errno()))
}
