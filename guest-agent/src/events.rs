//! The one ordered stream of what happened: appended by the reaper, the pumps and the OOM watch, read by the
//! host's long poll. Events are kept until the host asks for what comes after them.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock;
use crate::proto::agent::{Event, event};
use crate::sync::lock;

#[derive(Default)]
pub struct EventLog {
    state: Mutex<LogState>,
    appended: Notify,
}

#[derive(Default)]
struct LogState {
    last_seq: u64,
    events: VecDeque<Event>,
}

impl EventLog {
    pub fn push(&self, kind: event::Kind) {
        let mut state = lock(&self.state);
        state.last_seq += 1;
        let event = Event {
            seq: state.last_seq,
            time_ns: clock::wall_ns(),
            kind: Some(kind),
            ..Default::default()
        };
        state.events.push_back(event);
        drop(state);
        self.appended.notify_waiters();
    }

    /// Forgets events up to `after_seq` and returns those behind it, waiting up to `wait` for the first.
    pub async fn after(&self, after_seq: u64, wait: Duration) -> Vec<Event> {
        let appended = self.appended.notified();
        tokio::pin!(appended);
        // Registered before looking, so that a push in between is not missed.
        appended.as_mut().enable();
        let ready = self.take_after(after_seq);
        if !ready.is_empty() || wait.is_zero() {
            return ready;
        }
        // A second waiter may have forgotten the event that woke this one: an empty answer is allowed.
        let _ = tokio::time::timeout(wait, appended).await;
        self.take_after(after_seq)
    }

    /// At most a few thousand at a time, to stay far below ttrpc's 4 MiB.
    fn take_after(&self, after_seq: u64) -> Vec<Event> {
        const MOST: usize = 4096;
        let mut state = lock(&self.state);
        while state
            .events
            .front()
            .is_some_and(|event| event.seq <= after_seq)
        {
            state.events.pop_front();
        }
        state.events.iter().take(MOST).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::agent::OutOfMemory;

    fn oom(id: &str) -> event::Kind {
        event::Kind::Oom(OutOfMemory {
            container_id: id.to_owned(),
            ..Default::default()
        })
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn seqs(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn after_is_repeatable_until_acknowledged() {
        let log = EventLog::default();
        log.push(oom("a"));
        log.push(oom("b"));
        run(async {
            assert_eq!(seqs(&log.after(0, Duration::ZERO).await), [1, 2]);
            assert_eq!(seqs(&log.after(0, Duration::ZERO).await), [1, 2]);
            assert_eq!(seqs(&log.after(1, Duration::ZERO).await), [2]);
            assert_eq!(seqs(&log.after(0, Duration::ZERO).await), [2]);
            assert!(log.after(2, Duration::from_millis(1)).await.is_empty());
            log.push(oom("c"));
            assert_eq!(seqs(&log.after(2, Duration::ZERO).await), [3]);
        });
    }

    #[test]
    fn after_wakes_when_an_event_is_pushed() {
        let log = EventLog::default();
        run(async {
            let (events, ()) = tokio::join!(log.after(0, Duration::from_secs(60)), async {
                tokio::task::yield_now().await;
                log.push(oom("a"));
            });
            assert_eq!(seqs(&events), [1]);
        });
    }
}
