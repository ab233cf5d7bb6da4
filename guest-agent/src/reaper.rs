//! Every child of PID 1 is reaped here, and each exit is matched with the process it belongs to.
//!
//! A container process may die before the helper that made it has told its pid. Such exits are kept as long as a
//! helper is at work that began before them ([`ExitBook`], no I/O); the rest belong to helpers and to orphans of
//! containers, which nobody waits for.

use std::collections::{HashMap, VecDeque};

use nix::errno::Errno;

use crate::clock;

/// How a process ended, as the host wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0..255, 128+n for death by signal n.
    pub status: u32,
    pub at_ns: i64,
}

/// Names a process of a container; an empty exec id is its init.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    pub container_id: String,
    pub exec_id: String,
}

/// Held while a helper is at work: exits from this moment on may be claimed by it.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Who owns which pid, and which exits nobody has claimed yet.
#[derive(Default)]
pub struct ExitBook {
    owners: HashMap<i32, ProcessKey>,
    open_tickets: Vec<Ticket>,
    unclaimed: VecDeque<(Ticket, i32, Exit)>,
    next: u64,
}

impl ExitBook {
    /// A helper begins that will report a pid.
    pub fn open(&mut self) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        self.open_tickets.push(ticket);
        ticket
    }

    /// The helper reported `pid`: from now on its exit goes to `key`. If it died already, here is its exit.
    pub fn claim(&mut self, ticket: Ticket, pid: i32, key: ProcessKey) -> Option<Exit> {
        // A pid from before the helper began is another process that had the same number.
        let found = self
            .unclaimed
            .iter()
            .position(|(died_at, dead, _)| *dead == pid && *died_at >= ticket);
        if let Some((_, _, exit)) = found.and_then(|index| self.unclaimed.remove(index)) {
            return Some(exit);
        }
        self.owners.insert(pid, key);
        None
    }

    /// The helper is done, claimed or not.
    pub fn close(&mut self, ticket: Ticket) {
        self.open_tickets.retain(|open| *open != ticket);
        match self.open_tickets.iter().min().copied() {
            None => self.unclaimed.clear(),
            Some(oldest) => self.unclaimed.retain(|(died_at, _, _)| *died_at >= oldest),
        }
    }

    /// A child died: its owner, or None after noting it for a helper that is still at work.
    pub fn died(&mut self, pid: i32, exit: Exit) -> Option<ProcessKey> {
        if let Some(key) = self.owners.remove(&pid) {
            return Some(key);
        }
        if !self.open_tickets.is_empty() {
            self.next += 1;
            self.unclaimed.push_back((Ticket(self.next), pid, exit));
        }
        None
    }
}

/// Reaps one dead child; None when there is none (left).
pub fn reap_one() -> Option<(i32, Exit)> {
    loop {
        let mut raw = 0;
        // SAFETY: waitpid writes one int to `raw`, which lives here. Not nix: it cannot name real-time signals and
        // would lose such an exit.
        let pid = unsafe { libc::waitpid(-1, &raw mut raw, libc::WNOHANG) };
        if pid == 0 || (pid < 0 && Errno::last() != Errno::EINTR) {
            return None;
        }
        if let (true, Some(status)) = (pid > 0, exit_status(raw)) {
            let at_ns = clock::wall_ns();
            return Some((pid, Exit { status, at_ns }));
        }
    }
}

/// The host's form of a wait status; None for a stop or continue.
fn exit_status(raw: i32) -> Option<u32> {
    let status = if libc::WIFEXITED(raw) {
        libc::WEXITSTATUS(raw)
    } else if libc::WIFSIGNALED(raw) {
        128 + libc::WTERMSIG(raw)
    } else {
        return None;
    };
    u32::try_from(status).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(exec_id: &str) -> ProcessKey {
        ProcessKey {
            container_id: "box".to_owned(),
            exec_id: exec_id.to_owned(),
        }
    }

    fn exit(status: u32) -> Exit {
        Exit { status, at_ns: 1 }
    }

    #[test]
    fn exit_status_follows_the_shell() {
        assert_eq!(exit_status(0), Some(0));
        assert_eq!(exit_status(42 << 8), Some(42));
        assert_eq!(exit_status(9), Some(137));
        assert_eq!(exit_status(40), Some(168)); // a real-time signal
        assert_eq!(exit_status(0x137f), None); // stopped
    }

    #[test]
    fn died_after_claim_goes_to_the_owner_once() {
        let mut book = ExitBook::default();
        let ticket = book.open();
        assert_eq!(book.claim(ticket, 10, key("")), None);
        book.close(ticket);
        assert_eq!(book.died(10, exit(0)), Some(key("")));
        assert_eq!(book.died(10, exit(1)), None);
    }

    #[test]
    fn died_before_claim_is_kept_for_the_helper() {
        let mut book = ExitBook::default();
        let ticket = book.open();
        assert_eq!(book.died(10, exit(7)), None);
        assert_eq!(book.claim(ticket, 10, key("")), Some(exit(7)));
    }

    #[test]
    fn died_before_the_helper_began_is_another_process() {
        let mut book = ExitBook::default();
        let first = book.open();
        assert_eq!(book.died(10, exit(1)), None);
        let second = book.open();
        assert_eq!(book.died(10, exit(2)), None);
        assert_eq!(book.claim(second, 10, key("b")), Some(exit(2)));
        assert_eq!(book.claim(first, 10, key("a")), Some(exit(1)));
    }

    #[test]
    fn close_forgets_what_no_open_helper_can_claim() {
        let mut book = ExitBook::default();
        let first = book.open();
        book.died(10, exit(1));
        let second = book.open();
        book.close(first);
        assert!(book.unclaimed.is_empty());
        book.died(11, exit(2));
        book.close(second);
        assert!(book.unclaimed.is_empty());
        book.died(12, exit(3));
        assert!(book.unclaimed.is_empty());
    }
}
