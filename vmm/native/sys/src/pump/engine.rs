//! The pump's thread: epoll, commands, and turns.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};

use strato_plumbing::failure::last_errno;
use strato_plumbing::{Failure, Result, check};

use crate::pump::descriptor::End;
use crate::pump::events::{Event, EventFd, EventKind, EventQueue};
use crate::pump::scratch::Scratch;
use crate::pump::stream::{Stats, Stream, Turn};

/// Where the answer to a command goes.
pub type Answer<T> = SyncSender<Result<T>>;

/// What the other threads can ask for.
#[derive(Debug)]
pub enum Command {
    Add(Box<Stream>, Answer<u64>),
    SetLimit(u64, u64, Answer<()>),
    Stats(u64, Answer<Stats>),
    Remove(u64, Answer<()>),
    Stop,
}

/// Gets the thread's attention, cheaply when it is awake.
#[derive(Debug)]
pub struct Waker {
    fd: EventFd,
    asked: AtomicBool,
}

impl Waker {
    /// To be called after a command has been put into the channel.
    pub fn wake(&self) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            self.fd.set();
        }
    }

    fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Before the channel is emptied, so that a later command wakes again.
    fn acknowledge(&self) {
        self.fd.clear();
        self.asked.store(false, Ordering::Release);
    }
}

/// epoll data: handle * 2, plus 1 for the destination. Handles begin at 1, so 0 is free for the waker.
const WAKER_TOKEN: u64 = 0;

/// Events per epoll_wait.
const BATCH: usize = 64;

/// The buffer goes back to the kernel after so much idle time.
const IDLE_MS: c_int = 1000;

/// The thread's state.
#[derive(Debug)]
pub struct Engine {
    epoll: OwnedFd,
    waker: Arc<Waker>,
    inbox: Receiver<Command>,
    events: Arc<EventQueue>,
    streams: HashMap<u64, Stream>,
    runnable: VecDeque<u64>,
    last_handle: u64,
    scratch: Option<Scratch>,
}

impl Engine {
    /// Everything that can fail, before the thread starts.
    pub fn new(inbox: Receiver<Command>, events: Arc<EventQueue>) -> Result<Self> {
        // SAFETY: epoll_create1 takes an integer.
        let raw =
            check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }, || "Cannot make an epoll set".into())?;
        // SAFETY: epoll_create1 returned `raw` just now; nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        let waker = Arc::new(Waker { fd: EventFd::new()?, asked: AtomicBool::new(false) });
        let engine = Self {
            epoll,
            waker,
            inbox,
            events,
            streams: HashMap::new(),
            runnable: VecDeque::new(),
            last_handle: 0,
            scratch: None,
        };
        engine.watch(engine.waker.fd.as_raw_fd(), libc::EPOLLIN as u32, WAKER_TOKEN)?;
        Ok(engine)
    }

    /// The other threads' way to wake this one.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        loop {
            self.wait();
            if self.waker.asked() && !self.obey() {
                return;
            }
            // One turn for each; what becomes runnable meanwhile waits for the next round.
            for _ in 0..self.runnable.len() {
                if self.waker.asked() && !self.obey() {
                    return;
                }
                let Some(handle) = self.runnable.pop_front() else { break };
                self.turn(handle);
            }
        }
    }

    fn wait(&mut self) {
        let timeout = match (self.runnable.is_empty(), self.scratch.is_some()) {
            (false, _) => 0,
            (true, true) => IDLE_MS,
            (true, false) => -1,
        };
        let mut batch = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: `batch` has room for BATCH events.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), batch.as_mut_ptr(), BATCH as c_int, timeout) };
        if count == 0 && timeout > 0 {
            self.scratch = None;
        }
        for event in batch.iter().take(usize::try_from(count).unwrap_or(0)) {
            let token = event.u64;
            if token == WAKER_TOKEN {
                continue;
            }
            let Some(stream) = self.streams.get_mut(&(token / 2)) else { continue };
            let end = if token % 2 == 0 { &mut stream.src } else { &mut stream.dst };
            if let Some(end) = end {
                end.ready = true;
            }
            self.enqueue(token / 2);
        }
    }

    fn enqueue(&mut self, handle: u64) {
        if let Some(stream) = self.streams.get_mut(&handle)
            && !stream.queued
        {
            stream.queued = true;
            self.runnable.push_back(handle);
        }
    }

    /// False: stop. A sender that no longer waits for its answer is nobody's problem.
    fn obey(&mut self) -> bool {
        self.waker.acknowledge();
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Add(stream, answer)) => drop(answer.send(self.add(*stream))),
                Ok(Command::SetLimit(handle, total, answer)) => {
                    drop(answer.send(self.set_limit(handle, total)))
                }
                Ok(Command::Stats(handle, answer)) => {
                    drop(
                        answer.send(
                            self.streams.get(&handle).map(Stream::stats).ok_or_else(|| unknown(handle)),
                        ),
                    );
                }
                Ok(Command::Remove(handle, answer)) => drop(answer.send(self.remove(handle))),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn add(&mut self, mut stream: Stream) -> Result<u64> {
        self.last_handle += 1;
        let handle = self.last_handle;
        // Edge-triggered: an end is tried until it says "not now", and a hung-up end cannot make us spin.
        if let Some(src) = &mut stream.src {
            self.register(src, (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32, handle * 2)?;
        }
        if let Some(dst) = &mut stream.dst
            && let Err(failure) = self.register(dst, (libc::EPOLLOUT | libc::EPOLLET) as u32, handle * 2 + 1)
        {
            self.let_go(stream.src.take());
            return Err(failure);
        }
        self.streams.insert(handle, stream);
        self.enqueue(handle);
        Ok(handle)
    }

    /// Regular files and /dev/null cannot be polled (EPERM) and need not.
    fn register(&self, end: &mut End, interest: u32, token: u64) -> Result<()> {
        match self.watch(end.as_raw_fd(), interest, token) {
            Ok(()) => {
                end.polled = true;
                Ok(())
            }
            Err(failure) if failure.errno() == libc::EPERM => {
                end.always_ready();
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn watch(&self, fd: RawFd, interest: u32, token: u64) -> Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: `event` is live during the call.
        let outcome =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        check(outcome, || "Cannot watch the descriptor".into())?;
        Ok(())
    }

    /// Closing alone would not end the watching: the caller's descriptor keeps the open file alive.
    fn let_go(&self, end: Option<End>) {
        let Some(end) = end else { return };
        if end.polled {
            // SAFETY: EPOLL_CTL_DEL reads no event.
            let outcome = unsafe {
                libc::epoll_ctl(
                    self.epoll.as_raw_fd(),
                    libc::EPOLL_CTL_DEL,
                    end.as_raw_fd(),
                    std::ptr::null_mut(),
                )
            };
            debug_assert!(outcome == 0, "epoll_ctl: errno {}", last_errno());
        }
    }

    fn set_limit(&mut self, handle: u64, total: u64) -> Result<()> {
        self.streams.get_mut(&handle).ok_or_else(|| unknown(handle))?.set_limit(total);
        self.enqueue(handle);
        Ok(())
    }

    fn remove(&mut self, handle: u64) -> Result<()> {
        let mut stream = self.streams.remove(&handle).ok_or_else(|| unknown(handle))?;
        self.let_go(stream.src.take());
        self.let_go(stream.dst.take());
        self.events.forget(handle);
        Ok(())
    }

    fn turn(&mut self, handle: u64) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        stream.queued = false;
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            // Out of memory: the stream keeps its place and is tried again, with the interpreter in trouble too.
            empty => match Scratch::new() {
                Ok(scratch) => empty.insert(scratch),
                Err(_) => return self.enqueue(handle),
            },
        };
        match stream.run(scratch.bytes()) {
            Turn::Waiting => {}
            Turn::More => self.enqueue(handle),
            Turn::DstFailed(errno) => {
                let dst = stream.dst.take();
                self.report(handle, EventKind::DstError, errno);
                self.let_go(dst);
                self.enqueue(handle);
            }
            Turn::Finished(kind, errno) => {
                let (src, dst) = stream.release();
                // Closed before the event: whoever hears it may rely on it.
                self.let_go(src);
                self.let_go(dst);
                self.report(handle, kind, errno);
            }
        }
    }

    fn report(&self, handle: u64, kind: EventKind, errno: i32) {
        let Some(stream) = self.streams.get(&handle) else { return };
        self.events.push(Event { tag: stream.tag, handle, bytes: stream.stats().bytes_moved, kind, errno });
    }
}

fn unknown(handle: u64) -> Failure {
    Failure::new(format!("The pump has no stream {handle}"), libc::ENOENT)
}
