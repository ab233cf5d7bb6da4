//! The tables, one file for each kind of thread, one folder for each architecture: not all have the same calls.

use crate::program::{Instruction, Otherwise, Program, program_len};
use crate::role::Role;
use crate::rules::{Rule, joined};

#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod architecture;

use architecture::{
    balloon, base, block, console, control, fs, keeper, kvm, late, net, queues, rng, service, vcpu, vsock,
};

/// A role's rules and what they are compiled to.
pub(crate) struct Table {
    pub(crate) rules: &'static [Rule],
    pub(crate) kill: &'static [Instruction],
    pub(crate) log: &'static [Instruction],
}

/// Joins the parts of a role's table and compiles it.
macro_rules! table {
    ($first:expr $(, $more:expr)*) => {{
        const LEN: usize = $first.len() $(+ $more.len())*;
        const RULES: [Rule; LEN] = joined(&[&$first $(, &$more)*]);
        const SIZE: usize = program_len(&RULES);
        static KEPT: [Rule; LEN] = RULES;
        static KILL: Program<SIZE> = Program::new(&RULES, Otherwise::Kill, None);
        static LOG: Program<SIZE> = Program::new(&RULES, Otherwise::Log, None);
        Table { rules: &KEPT, kill: KILL.instructions(), log: LOG.instructions() }
    }};
}

/// The table of a role.
pub(crate) fn of(role: Role) -> Table {
    match role {
        Role::Control => table!(control::RULES, late::RULES, kvm::CONTROL, base::RULES, base::CLOSING),
        Role::Service => table!(service::RULES, base::RULES, base::CLOSING),
        Role::Vsock => table!(queues::RULES, queues::LIMITS, vsock::RULES, base::RULES, base::CLOSING),
        Role::Fs => table!(queues::RULES, queues::LIMITS, fs::RULES, base::RULES, base::CLOSING),
        Role::FsPool => table!(fs::RULES, base::RULES, base::CLOSING),
        Role::Block => table!(queues::RULES, queues::LIMITS, block::RULES, base::RULES, base::CLOSING),
        Role::BlockPool => table!(block::POOL, base::RULES),
        Role::Net => table!(queues::RULES, queues::LIMITS, net::RULES, base::RULES, base::CLOSING),
        Role::Rng => table!(queues::RULES, queues::LIMITS, rng::RULES, base::RULES, base::CLOSING),
        Role::Console => table!(queues::RULES, console::RULES, base::RULES, base::CLOSING),
        Role::Balloon => table!(queues::RULES, queues::LIMITS, balloon::RULES, base::RULES, base::CLOSING),
        Role::Ram => table!(base::RULES),
        Role::Vcpu => table!(vcpu::RULES, base::RULES, base::CLOSING),
        Role::Keeper => table!(
            keeper::RULES,
            queues::RULES,
            queues::LIMITS,
            vsock::RULES,
            fs::RULES,
            block::RULES,
            block::POOL,
            net::RULES,
            balloon::RULES,
            vcpu::RULES,
            service::RULES,
            base::RULES,
            base::CLOSING
        ),
    }
}
