//! Capability sets of the calling thread, and what an exec may still give (capabilities(7)).

use std::ffi::c_ulong;

use crate::failure::{Failure, Result, check, last_errno};

/// A set of capabilities: bit n is number n of linux/capability.h.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

/// The names in the order of their numbers (linux/capability.h), without their prefix.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Capabilities {
    /// No capability.
    pub const NONE: Self = Self(0);

    /// The capabilities whose numbers are given.
    pub const fn of(numbers: &[u32]) -> Self {
        let mut bits = 0;
        let mut rest = numbers;
        while let [number, others @ ..] = rest {
            bits |= 1 << *number;
            rest = others;
        }
        Self(bits)
    }

    /// Reads names separated by commas; an empty list is no capability.
    ///
    /// # Errors
    /// Names the unknown one.
    pub fn parse(list: &str) -> Result<Self> {
        let mut bits = 0;
        for word in list.split(',').filter(|word| !word.is_empty()) {
            let number = NAMES.iter().position(|name| *name == word).ok_or_else(|| {
                Failure::refused(format!(
                    "Capability {word:?} is unknown; write the names of linux/capability.h in lower case and \
                     without cap_"
                ))
            })?;
            bits |= 1 << number;
        }
        Ok(Self(bits))
    }

    /// Those that are in both sets.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether capability `number` is in the set.
    pub fn contains(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }
}

/// Leaves the calling thread with these permitted and effective capabilities and no inheritable or ambient one.
///
/// # Errors
/// EPERM for a capability that the thread does not have.
pub fn keep(kept: Capabilities) -> Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let word = |shift: u32| (kept.0 >> shift) as u32;
    let words = [0, 32].map(|shift| Words { effective: word(shift), permitted: word(shift), inheritable: 0 });
    // SAFETY: capset reads one header and, for this version, two structs of sets.
    let outcome = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) };
    check(outcome, || format!("Cannot reduce the capabilities to {:#x}", kept.0))?;
    Ok(())
}

/// Takes all others out of the bounding set: no program that is executed from here on can have them.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn bound(kept: Capabilities) -> Result<()> {
    for number in (0..64).filter(|number| !kept.contains(*number)) {
        // SAFETY: PR_CAPBSET_DROP takes one integer.
        let outcome = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(number), 0, 0, 0) };
        if outcome < 0 && last_errno() == libc::EINVAL {
            break; // the kernel's last capability was the one before
        }
        check(outcome, || format!("Cannot take capability {number} out of the bounding set"))?;
    }
    // SAFETY: PR_CAP_AMBIENT_CLEAR_ALL takes nothing.
    let outcome =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0, 0, 0) };
    check(outcome, || "Cannot clear the ambient capabilities".into())?;
    Ok(())
}

/// The permitted capabilities of the calling thread.
///
/// # Errors
/// Never on a kernel of this decade.
pub fn permitted() -> Result<Capabilities> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut words = [Words::default(); 2];
    // SAFETY: capget reads one header and, for this version, writes two structs of sets.
    let outcome = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) };
    check(outcome, || "Cannot read the capabilities".into())?;
    let [low, high] = words;
    Ok(Capabilities(u64::from(low.permitted) | u64::from(high.permitted) << 32))
}

/// `PR_SET_NO_NEW_PRIVS`: nothing that is executed from here on gains a privilege. For ever.
///
/// # Errors
/// Never on a kernel of this decade.
pub fn no_new_privileges() -> Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers.
    let outcome = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0) };
    check(outcome, || "Cannot give up new privileges".into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_gives_the_numbers_of_the_header() {
        let set = Capabilities::parse("chown,sys_admin,mknod,checkpoint_restore").unwrap();
        assert_eq!(set, Capabilities::of(&[0, 21, 27, 40]));
        assert!(set.contains(21) && !set.contains(1));
        assert_eq!(Capabilities::parse("").unwrap(), Capabilities::NONE);
        assert!(Capabilities::parse("chown,frob").unwrap_err().to_string().contains("\"frob\""));
    }

    #[test]
    fn keep_drops_for_the_calling_thread_alone() {
        let before = permitted().unwrap();
        let inside = std::thread::spawn(|| {
            keep(Capabilities::NONE).unwrap();
            permitted().unwrap()
        });
        assert_eq!(inside.join().unwrap(), Capabilities::NONE);
        assert_eq!(permitted().unwrap(), before);
    }
}
