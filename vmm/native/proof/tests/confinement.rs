//! Each role's threads do all of their work under its filter, and each rule of it is needed for that.
//!
//! A process confines its threads, does everything that a role's threads ever do, and ends well. Then another does
//! so for each rule, without that rule: it must not end well. So a rule that nobody needs any more is found, and
//! so is work that this test does not know of. The process is src/bin/confined.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Mutex;

use strato_jail::Role;
use strato_jail::rules::{Condition, Rule};
use strato_plumbing::capabilities::Capabilities;

/// Rules that this machine cannot show to be needed, by name or, where a role has several of that, by their reason; of
/// which role (None: any), and why others need them.
const ELSEWHERE: [(&str, Option<Role>, &str); 8] = [
    ("SYS_sched_yield", None, "two threads would have to be at the same channel at the right moment"),
    ("SYS_fstatfs", Some(Role::Balloon), "only guest memory in huge pages is asked for their size"),
    ("SYS_clock_gettime", None, "the vDSO tells the time here; with another clock the kernel is asked"),
    ("SYS_restart_syscall", None, "a stop (a frozen cgroup) would have to come at the right moment"),
    ("SYS_fcntl", Some(Role::Fs), "only files of network file systems are closed with care"),
    ("SYS_fcntl", Some(Role::FsPool), "only files of network file systems are closed with care"),
    (
        "SYS_close",
        Some(Role::Vcpu),
        "a doorbell comes back from a device whose thread has just died of a bug",
    ),
    ("Whether a descriptor that is closed was open", Some(Role::Vcpu), "as SYS_close"),
];

/// Every role but that of the first thread, whose work is Python's; and a processor's only where there is KVM.
fn roles() -> impl Iterator<Item = (usize, Role)> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !kvm {
        eprintln!("left out, since /dev/kvm cannot be opened: {:?}", Role::Vcpu);
    }
    let has_work = move |role| role != Role::Control && (role != Role::Vcpu || kvm);
    Role::ALL.into_iter().enumerate().filter(move |(_, role)| has_work(*role))
}

/// Whether two rules are about the same calls.
fn same(one: &Rule, other: &Rule) -> bool {
    let conditions =
        |rule: &'static [Condition]| rule.iter().map(|condition| (condition.argument, condition.compare));
    one.call == other.call && conditions(one.conditions).eq(conditions(other.conditions))
}

/// The keeper has the rules of all threads that it starts, which inherit its filter: they are needed there.
fn inherited(role: Role, rule: &Rule) -> bool {
    let started = Role::ALL.into_iter().filter(|role| ![Role::Control, Role::Keeper].contains(role));
    role == Role::Keeper && started.flat_map(Role::rules).any(|needed| same(rule, needed))
}

fn run(role: usize, more: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_confined"));
    command.arg(role.to_string()).args(more).output().unwrap()
}

/// Taps, and the guest's users, take root.
fn root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn work_of_every_role_is_done_under_its_filter() {
    if !root() {
        return;
    }
    for (index, role) in roles() {
        let output = run(index, None);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{role:?}: {}\n{words}", output.status);
    }
}

#[test]
#[ignore = "takes minutes: make test-full"]
fn every_rule_is_needed() {
    if !root() {
        return;
    }
    let elsewhere = |role: Role, rule: &Rule| {
        let about = |word: &str| word == rule.name || word == rule.why;
        ELSEWHERE.iter().any(|(word, only, _)| about(word) && only.is_none_or(|only| only == role))
    };
    let mut todo = Vec::new();
    for (index, role) in roles() {
        for (number, rule) in role.rules().iter().enumerate() {
            if !elsewhere(role, rule) && !inherited(role, rule) {
                todo.push((index, role, number, rule));
            }
        }
    }
    assert!(todo.len() > 150);
    let (todo, useless) = (Mutex::new(todo), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((index, role, number, rule)) = todo.lock().unwrap().pop() else { break };
                    if run(index, Some(&number.to_string())).status.success() {
                        useless.lock().unwrap().push(format!("{role:?}: {} ({})", rule.name, rule.why));
                    }
                }
            });
        }
    });
    let useless = useless.into_inner().unwrap();
    assert!(useless.is_empty(), "nobody needs\n{}", useless.join("\n"));
}

#[test]
fn forbidden_call_kills_the_process() {
    for (index, role) in Role::ALL.into_iter().enumerate() {
        assert_eq!(run(index, Some("forbidden")).status.signal(), Some(libc::SIGSYS), "{role:?}");
    }
}

#[test]
fn only_threads_of_shares_keep_capabilities() {
    for (_, role) in roles() {
        let none = role.capabilities() == Capabilities::NONE;
        assert_eq!(none, !matches!(role, Role::Fs | Role::FsPool | Role::Keeper), "{role:?}");
    }
}
