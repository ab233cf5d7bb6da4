//! How operations are carried out on the disk: by io_uring, or by a pool of threads where the host has or
//! allows none. Both take jobs, run them side by side and give them back in any order.
//!
//! A job owns its memory until it is given back: neither a reset nor a dropped engine frees memory that the
//! kernel may still write to.

mod pool;
mod shortcut;
mod uring;

use std::io;
use std::os::fd::RawFd;

use super::backend::Disk;
use super::buffers::Buffers;

pub(super) use self::pool::Pool;
pub(super) use self::uring::Uring;

/// Which engine is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring if this host has it and allows it, otherwise threads.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads.
    Pool,
}

/// One operation on the disk.
#[derive(Debug)]
pub(super) enum Work {
    Read {
        offset: u64,
        buffers: Buffers,
    },
    Write {
        offset: u64,
        buffers: Buffers,
        /// On the medium when it is done (RWF_DSYNC).
        durable: bool,
    },
    /// Everything written before is on the medium when it is done (fdatasync).
    Flush,
    /// fallocate; the size of the file always stays.
    Allocate {
        mode: libc::c_int,
        offset: u64,
        len: u64,
    },
}

/// An operation with the number of the request that it belongs to. A request has one job at a time.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) slot: usize,
    pub(super) work: Work,
}

/// A job given back, with how many bytes were moved.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) result: io::Result<usize>,
}

/// Carries jobs out.
pub(super) trait Engine: Send {
    /// For logs and metrics.
    fn choice(&self) -> EngineChoice;

    /// Readable while jobs wait to be given back.
    fn ready_fd(&self) -> RawFd;

    /// Takes a job; it is begun with the next [`Self::flush`] at the latest. Slots are below the number of
    /// slots that the engine was made for.
    fn submit(&mut self, job: Job);

    /// Begins everything submitted, in one go. False if the kernel is short of something: to be called again.
    fn flush(&mut self) -> bool;

    /// Appends the jobs that are done to `done`. Does not wait.
    fn reap(&mut self, done: &mut Vec<Done>);

    /// Waits until a job is done. Only if there is one.
    fn wait(&mut self);

    /// Gives up what can be given up: those jobs are given back with ECANCELED.
    fn cancel(&mut self);
}

/// The engine for `disk`, with room for `slots` jobs at a time.
///
/// # Errors
/// The engine asked for cannot be had.
pub(super) fn create(choice: EngineChoice, disk: &Disk, slots: usize) -> io::Result<Box<dyn Engine>> {
    let uring = match choice {
        EngineChoice::Pool => None,
        EngineChoice::Uring => Some(Uring::new(disk, slots)?),
        // Whatever the reason is: too old a kernel, a sysctl, a seccomp filter, a limit on locked memory.
        EngineChoice::Auto => Uring::new(disk, slots).ok(),
    };
    Ok(match uring {
        Some(uring) => Box::new(uring),
        None => Box::new(Pool::new(disk)?),
    })
}

fn cancelled(job: Job) -> Done {
    Done { job, result: Err(io::Error::from_raw_os_error(libc::ECANCELED)) }
}
