//! Threads for requests that would keep the device's own thread from the others.
//!
//! A job owns its chain and a handle to guest memory until it is done. The worker alone touches rings: it
//! takes what is done when the eventfd wakes it, or when the device has to stand still.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use strato_jail::Role;
use strato_virtio::thread::spawn;
use strato_virtio::{Chain, GuestRamHandle};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::reply::Reply;
use super::server::{Exchange, Patience, Server, Verdict};

/// Most jobs that wait or run. Beyond it the worker does the work itself, so that a guest's requests never
/// fill the host's memory.
const MAX_JOBS: usize = 64;

/// A request on its way through the pool.
pub(super) struct Job {
    pub(super) queue: u16,
    pub(super) chain: Chain,
    pub(super) request: Vec<u8>,
    pub(super) ram: GuestRamHandle,
}

/// A request that only has to be given back to the guest. Its buffers may be used again.
pub(super) struct Done {
    pub(super) queue: u16,
    pub(super) chain: Chain,
    pub(super) request: Vec<u8>,
    pub(super) written: u32,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    running: usize,
    done: Vec<Done>,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    /// A job came, or the pool closes.
    work: Condvar,
    /// The last job ended.
    idle: Condvar,
    ready: EventFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic ends the process; poison would come from a test's own.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads. Dropping the pool ends them after the jobs they have.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads that show as `name` and a number.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub(super) fn new(name: &str, threads: usize, server: &Arc<Server>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            ready: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let (shared, server) = (Arc::clone(&pool.shared), Arc::clone(server));
            let name = format!("fs{number}-{name}");
            pool.threads.push(spawn(Some(Role::FsPool), &name, move || serve(&shared, &server))?);
        }
        Ok(pool)
    }

    /// Becomes readable when something is done.
    pub(super) fn ready_fd(&self) -> RawFd {
        self.shared.ready.as_raw_fd()
    }

    /// Whether a job would be taken.
    pub(super) fn has_room(&self) -> bool {
        let state = self.shared.state();
        !self.threads.is_empty() && state.jobs.len() + state.running < MAX_JOBS
    }

    pub(super) fn submit(&self, job: Job) {
        self.shared.state().jobs.push_back(job);
        self.shared.work.notify_one();
    }

    /// Waits until nothing waits or runs; see [`Self::take_done`].
    pub(super) fn wait_idle(&self) {
        let mut state = self.shared.state();
        while !state.jobs.is_empty() || state.running > 0 {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What has been done since the last call, into `done`.
    pub(super) fn take_done(&self, done: &mut Vec<Done>) {
        // Emptied before the list is, so that nothing done later is left behind without a wake-up.
        let _ = self.shared.ready.read();
        done.append(&mut self.shared.state().done);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported on stderr by then.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, server: &Server) {
    let prepared = server.host.prepare_thread();
    let mut reply = Reply::new();
    let mut state = shared.state();
    loop {
        let Some(job) = state.jobs.pop_front() else {
            if state.closing {
                return;
            }
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.running += 1;
        drop(state);
        let Job { queue, chain, request, ram } = job;
        let exchange = Exchange { request: &request, ram: &ram, chain: &chain };
        let verdict = match &prepared {
            Ok(()) => server.answer(exchange, &mut reply, Patience::Waits),
            // Without its credentials in order the thread would act as somebody else.
            Err(_) => server.refuse(exchange, &mut reply),
        };
        let written = match verdict {
            Ok(Verdict::Used(written)) => written,
            // Memory that was checked is gone; the worker finds out by itself.
            Ok(Verdict::WouldWait) | Err(_) => 0,
        };
        // Before the job counts as done: afterwards the device holds no handle but its own.
        drop(ram);
        state = shared.state();
        state.running -= 1;
        state.done.push(Done { queue, chain, request, written });
        if state.done.len() == 1 {
            // Only fails when it is signalled already.
            let _ = shared.ready.write(1);
        }
        if state.running == 0 && state.jobs.is_empty() {
            shared.idle.notify_all();
        }
    }
}
