//! The switch for the whole process: whether its threads confine themselves.
//!
//! Off at first, so that device cores can run in any program and in their tests. strato-vmm switches it on
//! before it makes its devices.

use std::sync::atomic::{AtomicU8, Ordering};

use strato_plumbing::{Result, capabilities};

use crate::filter;
use crate::program::Otherwise;
use crate::role::Role;

const OFF: u8 = 0;
const KILL: u8 = 1;
const LOG: u8 = 2;

static CONFINEMENT: AtomicU8 = AtomicU8::new(OFF);

/// From here on every thread that is started with a role confines itself to it.
///
/// # Errors
/// The kernel cannot do it; then nothing has changed.
pub fn confine_threads(otherwise: Otherwise) -> Result<()> {
    filter::probe(otherwise)?;
    capabilities::no_new_privileges()?;
    let value = if otherwise == Otherwise::Log { LOG } else { KILL };
    CONFINEMENT.store(value, Ordering::Release);
    Ok(())
}

/// What happens to the calls that no rule allows; None while threads are not confined.
pub fn confinement() -> Option<Otherwise> {
    match CONFINEMENT.load(Ordering::Acquire) {
        KILL => Some(Otherwise::Kill),
        LOG => Some(Otherwise::Log),
        _ => None,
    }
}

/// Confines the calling thread to a role, if threads are confined: its capabilities, then its system calls.
///
/// # Errors
/// The kernel refuses. The thread must not go on then.
pub fn enter(role: Role) -> Result<()> {
    confinement().map_or(Ok(()), |otherwise| confine(role, otherwise))
}

/// Confines the calling thread to a role.
///
/// # Errors
/// As [`enter`].
pub fn confine(role: Role, otherwise: Otherwise) -> Result<()> {
    // A process that never had them, because it is not root's, has none to keep.
    capabilities::keep(role.capabilities().and(capabilities::permitted()?))?;
    #[cfg(feature = "proof")]
    if let Some(rule) = proof::left_out(role) {
        return filter::load(role.filter_without(rule, otherwise).instructions());
    }
    filter::load(role.filter(otherwise))
}

/// For the proof that each rule is needed. Not in a product.
#[cfg(feature = "proof")]
pub mod proof {
    use std::sync::OnceLock;

    use crate::role::Role;

    static LEFT_OUT: OnceLock<(Role, usize)> = OnceLock::new();

    /// From here on threads of `role` are confined without the rule at that index of its table.
    pub fn leave_out(role: Role, rule: usize) {
        LEFT_OUT.get_or_init(|| (role, rule));
    }

    pub(super) fn left_out(role: Role) -> Option<usize> {
        LEFT_OUT.get().filter(|(chosen, _)| *chosen == role).map(|(_, rule)| *rule)
    }
}
