//! Token buckets: a limit on bytes or operations per time, with a burst. Exact to the token: no rounding
//! error is lost or gained over any number of calls.

use std::time::{Duration, Instant};

/// A limit: `rate` tokens per second, at most `burst` saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens per second, at least 1.
    pub rate: u64,
    /// Most tokens that can be saved up, at least 1.
    pub burst: u64,
}

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// A bucket that starts full.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    config: BucketConfig,
    // In billionths of a token, so that a refill of any length is a whole number. Below zero after an amount
    // larger than the burst: a debt that later time pays off.
    level: i128,
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket at time `now`.
    pub fn new(config: BucketConfig, now: Instant) -> Self {
        let config = BucketConfig { rate: config.rate.max(1), burst: config.burst.max(1) };
        Self { config, level: i128::from(config.burst) * NANOS_PER_SECOND, updated: now }
    }

    fn refill(&mut self, now: Instant) {
        // Half of the range is centuries of nanoseconds.
        let elapsed =
            i128::try_from(now.saturating_duration_since(self.updated).as_nanos()).unwrap_or(i128::MAX);
        self.updated = self.updated.max(now);
        let gained = elapsed.saturating_mul(i128::from(self.config.rate));
        self.level = self.level.saturating_add(gained).min(full(self.config));
    }

    /// Changes the limit. What is saved up, or owed, stays so as far as the new burst allows.
    pub fn configure(&mut self, config: BucketConfig, now: Instant) {
        self.refill(now);
        self.config = BucketConfig { rate: config.rate.max(1), burst: config.burst.max(1) };
        self.level = self.level.min(full(self.config));
    }

    /// Whether `amount` tokens can be taken now.
    ///
    /// # Errors
    /// How long to wait until they can.
    pub fn check(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let needed = i128::from(amount.min(self.config.burst)) * NANOS_PER_SECOND;
        if self.level >= needed {
            return Ok(());
        }
        let rate = i128::from(self.config.rate);
        // Rounded up, so that after the wait they are there. Both numbers are positive.
        let nanos = (needed - self.level + rate - 1) / rate;
        Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How long until the bucket is full: a wait that ends by then loses no tokens.
    pub fn until_full(&mut self, now: Instant) -> Duration {
        self.refill(now);
        let nanos = (full(self.config) - self.level) / i128::from(self.config.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Takes `amount` tokens. An amount above the burst can be taken when the bucket is full, so that no
    /// request waits for ever; what it exceeds the burst by is owed, so that the rate holds all the same.
    ///
    /// # Errors
    /// How long to wait until it can be taken.
    pub fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.check(amount, now)?;
        self.level -= i128::from(amount) * NANOS_PER_SECOND;
        Ok(())
    }

    /// Takes `amount` tokens that are spent already, however many there are; what is missing is owed.
    pub fn spend(&mut self, amount: u64, now: Instant) {
        self.refill(now);
        self.level = self.level.saturating_sub(i128::from(amount) * NANOS_PER_SECOND);
    }
}

fn full(config: BucketConfig) -> i128 {
    i128::from(config.burst) * NANOS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use strato_virtio::mock::SeededRandom;

    use super::*;

    #[test]
    fn refill_is_exact_over_any_sequence_of_waits() {
        for seed in 0..if cfg!(miri) { 2 } else { 200 } {
            let mut random = SeededRandom::new(seed);
            let config = BucketConfig { rate: 1 + random.below(1_000_000), burst: 1 + random.below(100_000) };
            let start = Instant::now();
            let mut now = start;
            let mut bucket = TokenBucket::new(config, now);
            let mut taken = 0i128;
            for _ in 0..500 {
                let amount = 1 + random.below(config.burst * 2);
                if let Err(wait) = bucket.take(amount, now) {
                    let early = wait.saturating_sub(Duration::from_nanos(1));
                    assert!(bucket.clone().take(amount, now + early).is_err() || early == wait);
                    now += wait;
                    bucket.take(amount, now).unwrap();
                }
                taken += i128::from(amount);
                let elapsed = (now - start).as_nanos() as i128;
                let debt = i128::from(amount.saturating_sub(config.burst));
                let bound =
                    (i128::from(config.burst) + debt) * NANOS_PER_SECOND + elapsed * i128::from(config.rate);
                assert!(taken * NANOS_PER_SECOND <= bound, "seed {seed}");
            }
        }
    }

    #[test]
    fn time_that_goes_back_gives_nothing() {
        let start = Instant::now();
        let mut bucket =
            TokenBucket::new(BucketConfig { rate: 10, burst: 10 }, start + Duration::from_secs(5));
        bucket.take(10, start + Duration::from_secs(5)).unwrap();
        assert_eq!(bucket.take(10, start), Err(Duration::from_secs(1)));
    }

    #[test]
    fn amount_above_the_burst_is_let_through_when_full_and_paid_off_later() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(BucketConfig { rate: 10, burst: 10 }, now);
        assert_eq!(bucket.take(1000, now), Ok(()));
        assert_eq!(bucket.take(1, now), Err(Duration::from_millis(99_100)));
        assert_eq!(bucket.take(1000, now), Err(Duration::from_secs(100)));
        assert_eq!(bucket.take(1000, now + Duration::from_secs(100)), Ok(()));
    }

    #[test]
    fn nothing_is_lost_until_the_bucket_is_full() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(BucketConfig { rate: 10, burst: 10 }, now);
        assert_eq!(bucket.until_full(now), Duration::ZERO);
        bucket.take(25, now).unwrap();
        assert_eq!(bucket.until_full(now), Duration::from_millis(2500));
        assert_eq!(bucket.until_full(now + Duration::from_secs(1)), Duration::from_millis(1500));
    }

    #[test]
    fn change_of_the_limit_keeps_what_is_saved_up_or_owed() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(BucketConfig { rate: 10, burst: 10 }, now);
        bucket.take(30, now).unwrap();
        bucket.configure(BucketConfig { rate: 20, burst: 100 }, now);
        assert_eq!(bucket.take(20, now), Err(Duration::from_secs(2)));
        bucket.configure(BucketConfig { rate: 1, burst: 5 }, now + Duration::from_secs(60));
        assert_eq!(bucket.check(5, now + Duration::from_secs(60)), Ok(()));
        assert_eq!(bucket.take(6, now + Duration::from_secs(60)), Ok(()));
        assert_eq!(bucket.take(1, now + Duration::from_secs(60)), Err(Duration::from_secs(2)));
    }
}
