//! The io_uring engine.
//!
//! The ring is created disabled, restricted to the four kinds of operation that a disk needs on the one
//! registered file, and then enabled: whoever got hold of it could still do no more than that. There is no
//! polling thread. The ring's own descriptor is in the device's epoll set, so jobs that the kernel finishes
//! while they are submitted (data in the page cache) wake nobody up.
#![expect(unsafe_code, reason = "the kernel works on buffers meanwhile")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fixed, FsyncFlags, Timespec};
use io_uring::{IoUring, Probe, opcode};

use super::shortcut::{Reads, Shortcut};
use super::{Done, Engine, EngineChoice, Job, Work};
use crate::block::backend::Disk;
use crate::block::buffers::Pieces;

/// The disk's place in the table of registered files.
const DISK: Fixed = Fixed(0);

/// Most kernel threads for what blocks (writes to a file system, flushes), and for what this engine never
/// does (unbounded work).
const MAX_WORKERS: [u32; 2] = [8, 1];

/// IORING_REGISTER_SYNC_CANCEL of linux/io_uring.h.
const REGISTER_SYNC_CANCEL: u8 = 24;

const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

pub(crate) struct Uring {
    ring: ManuallyDrop<IoUring>,
    /// By slot; the kernel may use a job's memory as long as it is here.
    jobs: ManuallyDrop<Vec<Option<Job>>>,
    in_flight: usize,
    shortcut: Shortcut,
    /// Jobs that were done at once, or could not be submitted.
    finished: Vec<Done>,
}

impl Uring {
    /// # Errors
    /// io_uring is missing, forbidden or too old.
    pub(crate) fn new(disk: &Disk, slots: usize) -> io::Result<Self> {
        let entries = u32::try_from(slots).map_err(|_| io::ErrorKind::InvalidInput)?.next_power_of_two();
        // Saves interrupts of the device thread; Linux 5.19.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_r_disabled().build(entries))?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|operation| probe.is_supported(*operation)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        submitter.register_files(&[disk.file.as_raw_fd()])?;
        // Only a bound on threads; without it (before 5.15) the kernel has its own.
        let _ = submitter.register_iowq_max_workers(&mut MAX_WORKERS.clone());
        let mut allowed: Vec<Restriction> =
            OPERATIONS.iter().map(|operation| Restriction::sqe_op(*operation)).collect();
        allowed.push(Restriction::sqe_flags_allowed(Flags::FIXED_FILE.bits()));
        allowed.push(Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()));
        allowed.push(Restriction::register_op(REGISTER_SYNC_CANCEL));
        if submitter.register_restrictions(&mut allowed).is_err() {
            // Linux before 6.0 does not know the last one; what is in flight is then only awaited.
            allowed.pop();
            submitter.register_restrictions(&mut allowed)?;
        }
        submitter.register_enable_rings()?;
        // A filter may let a ring be made and still refuse its use.
        submitter.submit()?;
        let jobs = std::iter::repeat_with(|| None).take(slots).collect();
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            jobs: ManuallyDrop::new(jobs),
            in_flight: 0,
            // io_uring itself reads what is in the page cache while it is submitted.
            shortcut: Shortcut::new(disk, Reads::No),
            finished: Vec::new(),
        })
    }
}

/// The submission queue entry of a job. It points into the job's memory.
fn entry(job: &mut Job) -> Entry {
    let entry = match &mut job.work {
        Work::Read { offset, buffers } => match buffers.pieces() {
            Pieces::One(data, len) => opcode::Read::new(DISK, data, len).offset(*offset).build(),
            Pieces::Many(list, count) => opcode::Readv::new(DISK, list, count).offset(*offset).build(),
        },
        Work::Write { offset, buffers, durable } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match buffers.pieces() {
                Pieces::One(data, len) => {
                    opcode::Write::new(DISK, data, len).offset(*offset).rw_flags(flags).build()
                }
                Pieces::Many(list, count) => {
                    opcode::Writev::new(DISK, list, count).offset(*offset).rw_flags(flags).build()
                }
            }
        }
        Work::Flush => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        Work::Allocate { mode, offset, len } => {
            opcode::Fallocate::new(DISK, *len).offset(*offset).mode(*mode | libc::FALLOC_FL_KEEP_SIZE).build()
        }
    };
    entry.user_data(job.slot as u64)
}

impl Engine for Uring {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Uring
    }

    fn ready_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    fn submit(&mut self, job: Job) {
        let mut job = match self.shortcut.attempt(job) {
            Ok(done) => return self.finished.push(done),
            Err(job) => job,
        };
        let entry = entry(&mut job);
        // SAFETY: what the entry points to belongs to the job, which stays in `jobs` until its completion
        // has been seen, even if this engine is dropped before.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match (pushed, self.jobs.get_mut(job.slot)) {
            (Ok(()), Some(place)) => {
                debug_assert!(place.is_none(), "a request has one job at a time");
                *place = Some(job);
                self.in_flight += 1;
            }
            // Neither happens: the ring has a place for each slot, and slots are within bounds. An entry that
            // was pushed must not lose its memory, though.
            (Ok(()), None) => std::mem::forget(job),
            (Err(_), _) => self.finished.push(Done { job, result: Err(io::ErrorKind::ResourceBusy.into()) }),
        }
    }

    fn flush(&mut self) -> bool {
        loop {
            if self.ring.submission().is_empty() {
                return true;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.finished);
        for completion in self.ring.completion() {
            let slot = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            if let Some(job) = self.jobs.get_mut(slot).and_then(Option::take) {
                self.in_flight -= 1;
                let result = completion.result();
                let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
                done.push(Done { job, result });
            }
        }
    }

    fn wait(&mut self) {
        if !self.finished.is_empty() {
            return;
        }
        // Interrupted or short of memory: the caller asks again.
        let _ = self.ring.submit_and_wait(1);
    }

    fn cancel(&mut self) {
        self.flush();
        // Only those that no thread or disk works on yet end early. All others are awaited as completions,
        // not here; before Linux 6.0 all of them are.
        let _ = self.ring.submitter().register_sync_cancel(Some(Timespec::new()), CancelBuilder::any());
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.cancel();
        let mut done = Vec::new();
        // A disk that never answers is waited for in vain here, as it would be by the kernel at exit.
        while self.in_flight > 0 {
            self.wait();
            self.reap(&mut done);
        }
        // SAFETY: both are dropped once, here, and nothing is in flight: the kernel is done with the jobs'
        // memory.
        unsafe {
            ManuallyDrop::drop(&mut self.jobs);
            ManuallyDrop::drop(&mut self.ring);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use io_uring::types::Fd;

    use super::*;
    use crate::block::CacheMode;

    fn ask(engine: &mut Uring, entry: &Entry) -> i32 {
        // SAFETY: the entries of this test point to nothing, or to a literal.
        unsafe { engine.ring.submission().push(entry).unwrap() };
        engine.ring.submit_and_wait(1).unwrap();
        engine.ring.completion().next().unwrap().result()
    }

    #[test]
    fn ring_refuses_everything_but_the_operations_of_its_disk() {
        let file = File::open("/proc/self/exe").unwrap();
        let own = Fd(file.as_raw_fd());
        let mut engine = Uring::new(&Disk::new(file, CacheMode::Writeback).unwrap(), 8).unwrap();
        let path = c"/".as_ptr();
        for (entry, outcome) in [
            (opcode::Nop::new().build(), -libc::EACCES),
            (opcode::Nop::new().build().flags(Flags::FIXED_FILE), -libc::EACCES),
            (opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build(), -libc::EACCES),
            (opcode::Fsync::new(own).build(), -libc::EACCES),
            (opcode::Fsync::new(Fixed(1)).build(), -libc::EBADF),
            (opcode::Fsync::new(DISK).build().flags(Flags::IO_LINK), -libc::EACCES),
            (opcode::Fsync::new(DISK).build(), 0),
        ] {
            assert_eq!(ask(&mut engine, &entry), outcome, "{entry:?}");
        }
        assert!(engine.ring.submitter().register_files_update(0, &[0]).is_err());
        assert!(engine.ring.submitter().unregister_files().is_err());
    }
}
