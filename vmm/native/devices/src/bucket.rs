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

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A bucket that starts full.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    config: BucketConfig,
    // In billionths of a token, so that a refill of any length is a whole number.
    level: u128,
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket at time `now`.
    pub fn new(config: BucketConfig, now: Instant) -> Self {
        let config = BucketConfig { rate: config.rate.max(1), burst: config.burst.max(1) };
        Self { config, level: u128::from(config.burst) * NANOS_PER_SECOND, updated: now }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_nanos();
        self.updated = self.updated.max(now);
        let full = u128::from(self.config.burst) * NANOS_PER_SECOND;
        self.level =
            self.level.saturating_add(elapsed.saturating_mul(u128::from(self.config.rate))).min(full);
    }

    /// Takes `amount` tokens. An amount above the burst is allowed when the bucket is full and leaves
    /// it empty, so that no request waits for ever.
    ///
    /// # Errors
    /// How long to wait until it can be taken.
    pub fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let wanted = u128::from(amount.min(self.config.burst)) * NANOS_PER_SECOND;
        if self.level >= wanted {
            self.level -= wanted;
            return Ok(());
        }
        let nanos = (wanted - self.level).div_ceil(u128::from(self.config.rate));
        Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use strato_virtio::mock::SeededRandom;

    use super::*;

    #[test]
    fn refill_is_exact_over_any_sequence_of_waits() {
        for seed in 0..200 {
            let mut random = SeededRandom::new(seed);
            let config = BucketConfig { rate: 1 + random.below(1_000_000), burst: 1 + random.below(100_000) };
            let start = Instant::now();
            let mut now = start;
            let mut bucket = TokenBucket::new(config, now);
            let mut taken = 0u128;
            for _ in 0..500 {
                let amount = 1 + random.below(config.burst);
                if let Err(wait) = bucket.take(amount, now) {
                    let early = wait.saturating_sub(Duration::from_nanos(1));
                    assert!(bucket.clone().take(amount, now + early).is_err() || early == wait);
                    now += wait;
                    bucket.take(amount, now).unwrap();
                }
                taken += u128::from(amount);
                let elapsed = (now - start).as_nanos();
                let bound = u128::from(config.burst) * NANOS_PER_SECOND + elapsed * u128::from(config.rate);
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
    fn amount_above_the_burst_is_let_through_when_full() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(BucketConfig { rate: 10, burst: 10 }, now);
        assert_eq!(bucket.take(1000, now), Ok(()));
        assert_eq!(bucket.take(1000, now), Err(Duration::from_secs(1)));
    }
}
