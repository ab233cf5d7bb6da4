//! Whether to wait a moment for a driver's next request before it is told of those that are done.
//!
//! A device that is faster than its driver finds one request at a time, however many the driver has to send. To
//! tell it of each would cost it an interrupt for each, and a kick, since the device has stopped looking: both
//! cost more than the request. So the device looks on for as long as the next request usually takes to come.
//! A driver that has nothing more to send before it hears of an answer must not wait for that: after waiting in
//! vain the device does without for twice as many requests each time, and no wait is longer than what lies
//! between two of its requests. So what is lost is less than a fiftieth.

use std::time::{Duration, Instant};

/// Longest wait. Drivers send what they have within microseconds, emulated ones take longer.
const LONGEST: Duration = Duration::from_micros(200);
/// After so many waits in vain the next is tried after 2^6 requests.
const MOST_MISSES: u32 = 6;

/// Learns from each wait.
#[derive(Debug, Default)]
pub(crate) struct Linger {
    /// How long the next request takes to come, when it comes while the device waits.
    usual: Duration,
    /// What lies between two times at which the device had nothing more to do.
    period: Duration,
    asked_at: Option<Instant>,
    /// Waits in vain since the last success.
    misses: u32,
    /// Requests to go without a wait.
    rest: u32,
}

impl Linger {
    /// Waits until there is `more`, not for long. True if there is.
    pub(crate) fn more_comes(&mut self, more: impl Fn() -> bool) -> bool {
        let begin = Instant::now();
        self.ask(begin);
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        loop {
            let found = more();
            let waited = begin.elapsed();
            if found || waited >= self.window() {
                self.learn(found.then_some(waited));
                return found;
            }
            std::hint::spin_loop();
        }
    }

    fn ask(&mut self, now: Instant) {
        if let Some(before) = self.asked_at.replace(now) {
            let passed = now.saturating_duration_since(before).min(LONGEST);
            self.period = (self.period * 7 + passed) / 8;
        }
    }

    /// How long the next wait may take.
    fn window(&self) -> Duration {
        let wanted = if self.misses == 0 { self.usual * 2 + Duration::from_micros(1) } else { self.period };
        wanted.min(LONGEST)
    }

    /// What came of a wait: how long it took, or nothing.
    fn learn(&mut self, came_after: Option<Duration>) {
        match came_after {
            Some(waited) => {
                self.usual = if self.misses == 0 { (self.usual * 3 + waited) / 4 } else { waited };
                self.misses = 0;
            }
            None => {
                self.misses = (self.misses + 1).min(MOST_MISSES);
                self.rest = 1 << self.misses;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn waits_in_vain_become_rare_and_never_end() {
        let mut linger = Linger::default();
        let waits = (0..10_000).filter(|_| waited(&mut linger, || false)).count();
        // After 2, 4, … 64 requests, then one in 65.
        assert!((150..=165).contains(&waits), "{waits}");
    }

    #[test]
    fn a_wait_with_success_is_followed_by_the_next() {
        let mut linger = Linger::default();
        while !waited(&mut linger, || false) {}
        while !waited(&mut linger, || true) {}
        assert!((0..1000).all(|_| waited(&mut linger, || true)));
    }

    #[test]
    fn a_wait_is_no_longer_than_what_is_usual() {
        let mut linger = Linger::default();
        for _ in 0..40 {
            linger.learn(Some(Duration::from_micros(2)));
        }
        assert!(linger.window() <= Duration::from_micros(6), "{:?}", linger.window());
        for _ in 0..40 {
            linger.learn(Some(Duration::from_secs(1)));
        }
        assert_eq!(linger.window(), LONGEST);
    }

    #[test]
    fn a_wait_after_a_vain_one_is_no_longer_than_the_time_between_requests() {
        let mut linger = Linger::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            linger.ask(now);
            now += Duration::from_micros(20);
        }
        linger.learn(None);
        assert!(linger.window() <= Duration::from_micros(20), "{:?}", linger.window());
        for _ in 0..100 {
            linger.ask(now);
            now += Duration::from_secs(1);
        }
        assert!(linger.window() > LONGEST * 9 / 10, "{:?}", linger.window());
    }

    #[test]
    fn what_is_there_already_is_found_at_once() {
        assert!(Linger::default().more_comes(|| true));
    }

    /// Whether it looked at all.
    fn waited(linger: &mut Linger, more: impl Fn() -> bool) -> bool {
        let looked = Cell::new(false);
        linger.more_comes(|| {
            looked.set(true);
            more()
        });
        looked.get()
    }
}
