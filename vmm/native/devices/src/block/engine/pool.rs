//! The thread engine: preadv, pwritev, fdatasync and fallocate on a few threads of the device's own.
#![expect(unsafe_code, reason = "system calls")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use strato_jail::Role;
use strato_virtio::thread::spawn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::shortcut::{Reads, Shortcut};
use super::{Done, Engine, EngineChoice, Job, Work, cancelled};
use crate::block::backend::Disk;
use crate::block::buffers::Pieces;

/// Most threads. More wait for the disk, not for a processor.
const MAX_THREADS: usize = 8;

#[derive(Debug, Default)]
struct Todo {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    closing: bool,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    todo: Mutex<Todo>,
    wake: Condvar,
    done: Mutex<Vec<Done>>,
    /// Readable while `done` is not empty.
    ready: EventFd,
}

/// The thread engine. Threads are started when there is work for them.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    submitted: Vec<Job>,
    shortcut: Shortcut,
    /// Jobs that were done at once.
    finished: Vec<Done>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks, and what they hold is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// # Errors
    /// No descriptor to be had.
    pub(crate) fn new(disk: &Disk) -> io::Result<Self> {
        let shared = Shared {
            file: Arc::clone(&disk.file),
            todo: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            ready: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        };
        Ok(Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
            submitted: Vec::new(),
            shortcut: Shortcut::new(disk, Reads::Cached),
            finished: Vec::new(),
        })
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        // The threads that there are do the work if no more can be had.
        if let Ok(thread) = spawn(Some(Role::BlockPool), "block-io", move || shared.serve()) {
            self.threads.push(thread);
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut todo = lock(&self.todo);
        loop {
            if let Some(job) = todo.jobs.pop_front() {
                drop(todo);
                self.finish(carry_out(&self.file, job));
                todo = lock(&self.todo);
            } else if todo.closing {
                return;
            } else {
                todo.idle += 1;
                todo = self.wake.wait(todo).unwrap_or_else(PoisonError::into_inner);
                todo.idle -= 1;
            }
        }
    }

    fn finish(&self, job: Done) {
        let mut done = lock(&self.done);
        if done.is_empty() {
            // Under the lock, so that the descriptor always tells the truth about the list.
            let _ = self.ready.write(1);
        }
        done.push(job);
    }
}

pub(super) fn carry_out(file: &File, mut job: Job) -> Done {
    let result = loop {
        match perform(file, &mut job.work) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    Done { job, result }
}

fn perform(file: &File, work: &mut Work) -> io::Result<usize> {
    let fd = file.as_raw_fd();
    let position = |offset: u64| i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput);
    let outcome = match work {
        Work::Read { offset, buffers } => {
            let offset = position(*offset)?;
            match buffers.pieces() {
                // SAFETY: the job owns its memory and is not touched by others until this returns.
                Pieces::One(data, len) => unsafe { libc::pread(fd, data.cast(), len as usize, offset) },
                // SAFETY: as above.
                Pieces::Many(list, count) => unsafe { libc::preadv(fd, list, count as libc::c_int, offset) },
            }
        }
        Work::Write { offset, buffers, durable } => {
            let offset = position(*offset)?;
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            let one;
            let (list, count) = match buffers.pieces() {
                Pieces::One(data, len) => {
                    one = libc::iovec { iov_base: data.cast(), iov_len: len as usize };
                    (&raw const one, 1)
                }
                Pieces::Many(list, count) => (list, count),
            };
            // SAFETY: as above, and the kernel only reads.
            unsafe { libc::pwritev2(fd, list, count as libc::c_int, offset, flags) }
        }
        Work::Flush => return file.sync_data().map(|()| 0),
        Work::Allocate { mode, offset, len } => {
            let mode = *mode | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: no pointers are passed.
            unsafe { libc::fallocate(fd, mode, position(*offset)?, position(*len)?) as isize }
        }
    };
    usize::try_from(outcome).map_err(|_| io::Error::last_os_error())
}

impl Engine for Pool {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Pool
    }

    fn ready_fd(&self) -> RawFd {
        self.shared.ready.as_raw_fd()
    }

    fn submit(&mut self, job: Job) {
        match self.shortcut.attempt(job) {
            Ok(done) => self.finished.push(done),
            Err(job) => self.submitted.push(job),
        }
    }

    fn flush(&mut self) -> bool {
        if self.submitted.is_empty() {
            return true;
        }
        let count = self.submitted.len();
        let missing = {
            let mut todo = lock(&self.shared.todo);
            todo.jobs.extend(self.submitted.drain(..));
            for _ in 0..count.min(todo.idle) {
                self.shared.wake.notify_one();
            }
            todo.jobs.len().saturating_sub(todo.idle)
        };
        for _ in 0..missing.min(MAX_THREADS.saturating_sub(self.threads.len())) {
            self.start_thread();
        }
        if self.threads.is_empty() {
            // No thread at all: slow, but an answer.
            let jobs: Vec<Job> = lock(&self.shared.todo).jobs.drain(..).collect();
            for job in jobs {
                self.shared.finish(carry_out(&self.shared.file, job));
            }
        }
        true
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.finished);
        let mut threads = lock(&self.shared.done);
        if !threads.is_empty() {
            // Readable, so this does not wait.
            let _ = self.shared.ready.read();
            done.append(&mut threads);
        }
    }

    fn wait(&mut self) {
        self.flush();
        if !self.finished.is_empty() {
            return;
        }
        let mut ready = libc::pollfd { fd: self.ready_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one local of the right type. Interrupted: the caller asks again.
        unsafe { libc::poll(&raw mut ready, 1, -1) };
    }

    fn cancel(&mut self) {
        let mut given_up = std::mem::take(&mut self.submitted);
        given_up.extend(lock(&self.shared.todo).jobs.drain(..));
        for job in given_up {
            self.shared.finish(cancelled(job));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.cancel();
        lock(&self.shared.todo).closing = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has been reported on stderr by then; there is no more to do.
            let _ = thread.join();
        }
    }
}
