//! Device rules of a container (`linux.resources.devices`) as a program that the kernel asks at each open and mknod.
//!
//! cgroup v2 has no device files: access is decided by a BPF program attached to the cgroup (kernel:
//! Documentation/admin-guide/cgroup-v2.rst, "Device controller"). The OCI library would need libbpf for it; the
//! program is a list of comparisons, so it is written here instruction by instruction. `compile` is pure.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::errors::{AgentError, Context, Result};

/// More rules than any engine writes; each becomes at most nine instructions.
const MAX_RULES: usize = 1024;

/// BPF_DEVCG_ACC_MKNOD, _READ, _WRITE and BPF_DEVCG_DEV_BLOCK, _CHAR (linux/bpf.h).
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL_ACCESS: u32 = MKNOD | READ | WRITE;
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// One rule; None stands for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    const fn allow(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }
}

/// What a container always has: the default devices of the runtime spec (config-linux.md), its terminals, and
/// the making of nodes, which gives no access.
const DEFAULTS: [Rule; 11] = [
    Rule::allow(CHAR, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHAR, Some(1), Some(3), ALL_ACCESS), // null
    Rule::allow(CHAR, Some(1), Some(5), ALL_ACCESS), // zero
    Rule::allow(CHAR, Some(1), Some(7), ALL_ACCESS), // full
    Rule::allow(CHAR, Some(1), Some(8), ALL_ACCESS), // random
    Rule::allow(CHAR, Some(1), Some(9), ALL_ACCESS), // urandom
    Rule::allow(CHAR, Some(5), Some(0), ALL_ACCESS), // tty
    Rule::allow(CHAR, Some(5), Some(1), ALL_ACCESS), // console
    Rule::allow(CHAR, Some(5), Some(2), ALL_ACCESS), // ptmx
    Rule::allow(CHAR, Some(136), None, ALL_ACCESS),  // pts
];

/// struct bpf_insn (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Opcodes: class | operation | source (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const AND32: u8 = 0x54;
const SHIFT_RIGHT32: u8 = 0x74;
const MOVE32: u8 = 0xbc;
const MOVE_CONSTANT: u8 = 0xb7;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Registers of the program: result, context (then scratch), device type, access, major, minor.
const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Makes the container's cgroup and attaches its device rules. `resources` is the spec's `linux.resources`.
pub fn install(cgroup: &Cgroup, resources: Option<&Value>) -> Result<()> {
    let program = load(&compile(&rules(resources)?))?;
    let directory = cgroup.directory();
    std::fs::create_dir_all(directory)
        .with_context(|| format!("Making the cgroup {}", directory.display()))?;
    let cgroup = File::open(directory)
        .with_context(|| format!("Opening the cgroup {}", directory.display()))?;
    attach(cgroup.as_raw_fd(), &program)
}

/// The rules in the order in which they count, the last one that matches deciding.
fn rules(resources: Option<&Value>) -> Result<Vec<Rule>> {
    let listed = resources
        .and_then(|resources| resources.get("devices"))
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if listed.len() > MAX_RULES {
        return Err(AgentError::invalid(format!(
            "linux.resources.devices has {} rules; at most {MAX_RULES} are possible",
            listed.len()
        )));
    }
    let mut rules = Vec::with_capacity(listed.len() + DEFAULTS.len());
    for (index, rule) in listed.iter().enumerate() {
        rules.push(parse(rule).map_err(|reason| {
            AgentError::invalid(format!("linux.resources.devices[{index}]{reason}"))
        })?);
    }
    rules.extend(DEFAULTS);
    Ok(rules)
}

fn parse(rule: &Value) -> std::result::Result<Rule, String> {
    let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| match rule.get(name).and_then(Value::as_i64) {
        // The runtime spec's "any" is an absent number or a negative one.
        None | Some(i64::MIN..=-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| format!(".{name} {value} is out of range")),
    };
    let kind = match text("type") {
        "" | "a" => None,
        "b" => Some(BLOCK),
        "c" | "u" => Some(CHAR),
        other => return Err(format!(".type {other:?} is not one of a, b, c, u")),
    };
    let mut access = 0;
    for letter in text("access").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(format!(".access has {other:?}, not one of r, w, m")),
        };
    }
    Ok(Rule {
        allow: rule.get("allow").and_then(Value::as_bool).unwrap_or(false),
        kind,
        major: number("major")?,
        minor: number("minor")?,
        access: if access == 0 { ALL_ACCESS } else { access },
    })
}

/// The program: the last rule is asked first; what no rule allows is denied.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx: u32 access_type (access << 16 | type), major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, ACCESS, SCRATCH, 0, 0),
        instruction(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        instruction(LOAD_WORD, MINOR, SCRATCH, 8, 0),
        instruction(MOVE32, KIND, ACCESS, 0, 0),
        instruction(AND32, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT32, ACCESS, 0, 0, 16),
    ];
    for rule in rules.iter().rev() {
        let block = block(rule);
        // The verifier refuses instructions that cannot be reached: nothing may follow a rule without conditions.
        let last = block.len() == 2;
        program.extend(block);
        if last {
            return program;
        }
    }
    program.push(instruction(MOVE_CONSTANT, RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// One rule: conditions that jump behind the block when they do not hold, then the verdict.
fn block(rule: &Rule) -> Vec<Instruction> {
    let mut block = Vec::with_capacity(9);
    for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(value) = wanted {
            block.push(instruction(
                JUMP_NOT_EQUAL,
                register,
                0,
                0,
                value.cast_signed(),
            ));
        }
    }
    if rule.access != ALL_ACCESS {
        block.push(instruction(MOVE32, SCRATCH, ACCESS, 0, 0));
        block.push(instruction(AND32, SCRATCH, 0, 0, rule.access.cast_signed()));
        // An allowing rule must cover all that is asked for; a denying one any of it.
        block.push(if rule.allow {
            instruction(JUMP_NOT_EQUAL_REGISTER, SCRATCH, ACCESS, 0, 0)
        } else {
            instruction(JUMP_EQUAL, SCRATCH, 0, 0, 0)
        });
    }
    block.push(instruction(
        MOVE_CONSTANT,
        RESULT,
        0,
        0,
        i32::from(rule.allow),
    ));
    block.push(instruction(EXIT, 0, 0, 0, 0));
    let length = block.len();
    for (index, entry) in block.iter_mut().enumerate() {
        if matches!(
            entry.code,
            JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER | JUMP_EQUAL
        ) {
            // A block has nine instructions at most.
            entry.offset = i16::try_from(length - index - 1).unwrap_or(0);
        }
    }
    block
}

const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: target | source << 4,
        offset,
        immediate,
    }
}

/// The head of union bpf_attr (linux/bpf.h) for BPF_PROG_LOAD, up to log_level's group; the rest counts as zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

/// The head of union bpf_attr for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// enum bpf_cmd, bpf_prog_type, bpf_attach_type and a flag (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the pointers in `attributes` refer to `program` and a static string, which outlive the call; the
    // kernel reads instruction_count entries and a NUL-terminated string.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attributes) }.context("Loading the device rules")?;
    // SAFETY: a successful BPF_PROG_LOAD returns a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(cgroup: RawFd, program: &OwnedFd) -> Result<()> {
    let attributes = AttachAttributes {
        target_fd: cgroup.cast_unsigned(),
        program_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes hold descriptors only; the kernel checks them.
    unsafe { bpf(BPF_PROG_ATTACH, &attributes) }
        .map(drop)
        .context("Attaching the device rules")
}

/// bpf(2).
///
/// # Safety
/// Pointers inside `attributes` must be valid for what `command` does with them.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> std::io::Result<RawFd> {
    let pointer: *const c_void = std::ptr::from_ref(attributes).cast();
    // SAFETY: `attributes` is valid for reads of its size; the caller answers for the pointers in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the kernel would decide: runs the program as its interpreter would.
    fn verdict(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 6];
        let mut at = 0;
        loop {
            let now = program[at];
            let (target, source) = (
                usize::from(now.registers & 15),
                usize::from(now.registers >> 4),
            );
            let value = now.immediate.cast_unsigned();
            let jump = match now.code {
                LOAD_WORD => {
                    registers[target] =
                        context[usize::try_from(now.offset).expect("no negative offset") / 4];
                    false
                }
                AND32 => {
                    registers[target] &= value;
                    false
                }
                SHIFT_RIGHT32 => {
                    registers[target] >>= value;
                    false
                }
                MOVE32 => {
                    registers[target] = registers[source];
                    false
                }
                MOVE_CONSTANT => {
                    registers[target] = value;
                    false
                }
                JUMP_EQUAL => registers[target] == value,
                JUMP_NOT_EQUAL => registers[target] != value,
                JUMP_NOT_EQUAL_REGISTER => registers[target] != registers[source],
                EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            };
            at += 1 + if jump {
                usize::try_from(now.offset).expect("no negative offset")
            } else {
                0
            };
        }
    }

    fn program(devices: &Value) -> Vec<Instruction> {
        compile(&rules(Some(&json!({ "devices": devices }))).expect("rules"))
    }

    #[test]
    fn rules_absent_allow_the_default_devices_only() {
        let program = compile(&rules(None).expect("rules"));
        assert!(verdict(&program, CHAR, READ | WRITE, 1, 3));
        assert!(verdict(&program, CHAR, READ | WRITE, 136, 7));
        assert!(verdict(&program, BLOCK, MKNOD, 254, 0));
        assert!(!verdict(&program, CHAR, READ, 1, 1));
        assert!(!verdict(&program, BLOCK, READ, 254, 0));
    }

    #[test]
    fn rules_later_ones_override_earlier_ones() {
        let program = program(&json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 7, "access": "rwm"},
            {"allow": false, "type": "b", "major": 7, "minor": 3, "access": "w"},
        ]));
        assert!(verdict(&program, CHAR, READ | WRITE, 10, 229));
        assert!(!verdict(&program, CHAR, READ, 10, 200));
        assert!(!verdict(&program, BLOCK, READ, 10, 229));
        assert!(verdict(&program, BLOCK, READ, 7, 3));
        assert!(!verdict(&program, BLOCK, READ | WRITE, 7, 3));
        assert!(verdict(&program, BLOCK, READ | WRITE, 7, 4));
    }

    #[test]
    fn rules_allow_must_cover_all_that_is_asked() {
        let program = program(&json!([
            {"allow": true, "type": "c", "major": 10, "minor": 1, "access": "r"}
        ]));
        assert!(verdict(&program, CHAR, READ, 10, 1));
        assert!(!verdict(&program, CHAR, READ | WRITE, 10, 1));
    }

    #[test]
    fn rules_allow_all_leaves_no_unreachable_instruction() {
        let program = program(&json!([{"allow": true, "access": "rwm"}]));
        assert!(verdict(&program, BLOCK, READ | WRITE | MKNOD, 8, 1));
        assert_eq!(program.iter().filter(|i| i.code == EXIT).count(), 12);
        assert_eq!(program.last().map(|i| i.code), Some(EXIT));
    }

    #[test]
    fn rules_malformed_are_named_by_index() {
        for (rule, part) in [
            (json!({"type": "x"}), "devices[0].type"),
            (json!({"access": "rwz"}), "devices[0].access"),
            (json!({"major": 1u64 << 40}), "devices[0].major"),
        ] {
            let error = rules(Some(&json!({ "devices": [rule] }))).expect_err("a malformed rule");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
