//! Whether this host's KVM runs an unmodified kernel.
//!
//! That /dev/kvm opens says little: there are hosts whose KVM emulates a guest's kernel mode one instruction at a
//! time, and does not know all of them. So a throw-away VM runs a few of those that every kernel needs, and a loop
//! that must not take absurdly longer than here.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strato_plumbing::{Failure, Result};
use vm_memory::{Bytes, GuestAddress};

use crate::arch::probe_guest;
use crate::bus::BusDevice;
use crate::events::{MachineEvent, MachineEvents};
use crate::exit::Buses;
use crate::hub::Hub;
use crate::memory::{Backend, HugePages, MemoryConfig, Region, guest_ram};
use crate::vcpu::Vcpus;
use crate::vm::Vm;

/// How long all of it may take. On hardware it is over in two milliseconds; a test host that is emulated itself
/// needs a hundred.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many times longer than here may a loop take in the guest. Emulation of single instructions takes thousands of
/// times longer; nested virtualisation, and that in an emulated host, at most twice.
const MAX_RATIO: u32 = 100;
/// Below this a loop's time says nothing: the vCPU may have been off its processor.
const NOISE: Duration = Duration::from_millis(20);

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An unmodified kernel runs here.
    Usable(String),
    /// It does not; why.
    Unusable(String),
}

/// What the guest says, and when.
enum Word {
    Step(u8, Instant),
    Event(MachineEvent),
}

/// The guest's port, and the ear for its machine.
struct Line(Mutex<Sender<Word>>);

impl Line {
    fn say(&self, word: Word) {
        // The asker has gone when it has heard enough.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(word);
    }
}

impl BusDevice for Line {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(step) = data.first() {
            self.say(Word::Step(*step, Instant::now()));
        }
    }
}

impl MachineEvents for Line {
    fn happened(&self, event: MachineEvent) {
        self.say(Word::Event(event));
    }
}

/// Tries out the KVM device `kvm`.
pub fn probe(kvm: OwnedFd) -> Verdict {
    let begun = Instant::now();
    match begin(kvm) {
        Ok((vcpus, heard)) => {
            let verdict = listen(&heard, begun + PATIENCE);
            drop(vcpus);
            verdict
        }
        Err(failure) => Verdict::Unusable(failure.to_string()),
    }
}

fn begin(kvm: OwnedFd) -> Result<(Vcpus, Receiver<Word>)> {
    let mut vm = Vm::new(kvm)?;
    let ram = guest_ram(MemoryConfig {
        backend: Backend::Anonymous,
        regions: vec![Region { guest_addr: 0, bytes: probe_guest::RAM_BYTES }],
        huge_pages: HugePages::Advised,
        prealloc: false,
    })?;
    for (addr, bytes) in probe_guest::image() {
        ram.write_slice(&bytes, GuestAddress(addr))
            .map_err(|_| Failure::refused("Guest of the probe does not fit its RAM"))?;
    }
    vm.add_ram(ram)?;
    let fds = vm.create_vcpus(1)?;
    if let Some(fd) = fds.first() {
        probe_guest::enter(vm.kvm(), fd)?;
    }
    let (said, heard) = channel();
    let line = Arc::new(Line(Mutex::new(said)));
    let mut buses = Buses::default();
    buses.ports.insert(probe_guest::PORT, 1, Arc::clone(&line) as Arc<dyn BusDevice>)?;
    let hub = Arc::new(Hub::new(line));
    let vcpus = Vcpus::start(&vm, fds, &hub, &Arc::new(buses))?;
    vcpus.release()?;
    Ok((vcpus, heard))
}

fn listen(heard: &Receiver<Word>, deadline: Instant) -> Verdict {
    let mut current = "its first instruction";
    let mut loop_began = None;
    let mut best: Option<Duration> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let word = match heard.recv_timeout(left) {
            Ok(word) => word,
            Err(_) => {
                return Verdict::Unusable(format!("A guest did not get past {current} in {PATIENCE:?}"));
            }
        };
        match word {
            Word::Event(MachineEvent::TripleFault) => {
                return Verdict::Unusable(format!("A guest met a triple fault at {current}"));
            }
            Word::Event(MachineEvent::VcpuFailed(text)) => {
                return Verdict::Unusable(format!("A guest failed at {current}: {text}"));
            }
            Word::Event(other) => return Verdict::Unusable(format!("A guest ended at {current}: {other:?}")),
            Word::Step(probe_guest::LOOP_BEGINS, at) => {
                current = "a loop";
                loop_began = Some(at);
            }
            Word::Step(probe_guest::LOOP_ENDS, at) => {
                let taken = loop_began.map(|began| at.saturating_duration_since(began));
                best = taken.map(|taken| best.map_or(taken, |best| best.min(taken)));
            }
            Word::Step(probe_guest::DONE, _) => return judge(best.unwrap_or(PATIENCE)),
            Word::Step(probe_guest::WRONG, _) => {
                return Verdict::Unusable(format!("A guest found a wrong result of {current}"));
            }
            Word::Step(step, _) => current = probe_guest::name(step),
        }
    }
}

/// Judges by the shortest time that a loop took in the guest.
fn judge(guest: Duration) -> Verdict {
    let host = (0..3)
        .map(|_| {
            let began = Instant::now();
            probe_guest::same_loop();
            began.elapsed()
        })
        .min()
        .unwrap_or_default();
    let text = format!("a loop that takes {host:?} here takes {guest:?} in a guest");
    if guest > NOISE && guest > host.saturating_mul(MAX_RATIO) {
        return Verdict::Unusable(format!("KVM emulates instructions one by one: {text}"));
    }
    Verdict::Usable(format!("A guest ran in kernel mode; {text}"))
}
