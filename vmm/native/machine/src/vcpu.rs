//! vCPUs and their threads.
//!
//! A thread holds its vCPU while it may be in the guest and gives it back at the gate, so whoever finds all of them
//! parked may look at and change their registers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_ioctls::VcpuFd;
use strato_jail::Role;
use strato_plumbing::{Failure, Result};
use strato_virtio::thread::spawn;
use strato_virtio::{GuestRamHandle, panic_text};

use crate::arch;
use crate::counters::{self, Counters};
use crate::events::{MachineEvent, MachineEvents};
use crate::exit::{Buses, Next, turn};
use crate::gate::Pass;
use crate::hub::Hub;
use crate::kick::{self, Kick, Listening};
use crate::stats::{self, KvmStats};
use crate::vm::Vm;

struct Vcpu {
    fd: Mutex<VcpuFd>,
    counters: Counters,
    stats: Option<KvmStats>,
}

impl Vcpu {
    fn locked(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPUs of a machine. Dropping them ends their threads.
pub(crate) struct Vcpus {
    vcpus: Vec<Arc<Vcpu>>,
    threads: Vec<JoinHandle<()>>,
    hub: Arc<Hub>,
    // A vCPU keeps its VM in KVM alive, and so must the memory be that KVM has for it.
    _ram: Option<GuestRamHandle>,
}

impl Vcpus {
    /// Starts a thread for each vCPU of `vm`, in the order of their ids. All are parked when this returns, and the
    /// calling thread is deaf to kicks from here on.
    ///
    /// # Errors
    /// No thread to be had.
    pub(crate) fn start(vm: &Vm, fds: Vec<VcpuFd>, hub: &Arc<Hub>, buses: &Arc<Buses>) -> Result<Self> {
        kick::prepare()?;
        let _ram = vm.ram().map(Arc::clone);
        let mut all = Self { vcpus: Vec::new(), threads: Vec::new(), hub: Arc::clone(hub), _ram };
        for fd in fds {
            let place = hub.gate.add(Kick::new(&fd)?);
            let stats = KvmStats::open(&fd);
            let vcpu = Arc::new(Vcpu { fd: Mutex::new(fd), counters: Counters::default(), stats });
            let runner =
                Runner { place, vcpu: Arc::clone(&vcpu), hub: Arc::clone(hub), buses: Arc::clone(buses) };
            let thread =
                spawn(Some(Role::Vcpu), &format!("vcpu{place}"), move || runner.live()).map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                    Failure::new(format!("Cannot start the thread of vCPU {place}"), errno)
                })?;
            all.vcpus.push(vcpu);
            all.threads.push(thread);
        }
        hub.gate.close(None);
        Ok(all)
    }

    /// Calls all vCPUs out of the guest. False: one did not come in time, and all go on.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> bool {
        self.hub.gate.close(deadline)
    }

    /// Lets all vCPUs go.
    ///
    /// # Errors
    /// The guest has come to an end, or a thread has died.
    pub(crate) fn release(&self) -> Result<()> {
        self.hub.gate.open()
    }

    /// Works on each vCPU by index. All of them must be parked.
    ///
    /// # Errors
    /// The first one's.
    pub(crate) fn each(&self, mut work: impl FnMut(u32, &VcpuFd) -> Result<()>) -> Result<()> {
        self.vcpus.iter().zip(0..).try_for_each(|(vcpu, index)| work(index, &vcpu.locked()))
    }

    /// The kernel's number of each thread; 0 for one that has died.
    pub(crate) fn threads(&self) -> Vec<libc::pid_t> {
        self.hub.gate.threads().into_iter().map(Option::unwrap_or_default).collect()
    }

    /// The counters of all vCPUs together, ours and then KVM's.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut totals = counters::sum(self.vcpus.iter().map(|vcpu| &vcpu.counters));
        for stats in self.vcpus.iter().filter_map(|vcpu| vcpu.stats.as_ref()) {
            stats::add(&mut totals, stats.values());
        }
        totals
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.hub.gate.dismiss();
        for thread in self.threads.drain(..) {
            // Its panics are caught and reported inside.
            let _ = thread.join();
        }
    }
}

/// What a vCPU's thread works with.
struct Runner {
    place: usize,
    vcpu: Arc<Vcpu>,
    hub: Arc<Hub>,
    buses: Arc<Buses>,
}

impl Runner {
    fn live(self) {
        self.hub.gate.arrive(self.place, kick::this_thread());
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run())) {
            self.hub.gate.lose(self.place);
            self.hub.happened(MachineEvent::Bug(panic_text(panic.as_ref())));
        }
    }

    fn run(&self) {
        let mut entered = false;
        while let Pass::Run { parked } = self.hub.gate.pass(self.place) {
            let mut fd = self.vcpu.locked();
            if parked && std::mem::replace(&mut entered, true) {
                arch::note_pause(&fd);
            }
            // A vCPU that left the guest for a device enters it once more before it looks at the gate: only then
            // is the access complete. The gate has seen to it that it comes straight back.
            let listening = Listening::begin();
            let event = loop {
                match turn(&mut fd, &self.buses, &self.vcpu.counters) {
                    Next::Enter => {}
                    Next::Look => break None,
                    Next::Tell(event) => break Some(event),
                }
            };
            drop(listening);
            drop(fd);
            if let Some(event) = event {
                self.hub.happened(event);
            }
        }
    }
}
