//! Limits of a device: bytes and operations per time, both at once.

use std::time::{Duration, Instant};

use crate::bucket::{BucketConfig, TokenBucket};

/// What a device may do; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In bytes.
    pub bandwidth: Option<BucketConfig>,
    /// In requests or packets.
    pub operations: Option<BucketConfig>,
}

/// Waits are this long if nothing is lost by it, so that a high limit does not mean a wake-up for each operation.
const GRAIN: Duration = Duration::from_millis(1);

/// Enforces [`Limits`]. Without any it costs nothing, not even a look at the clock.
#[derive(Debug, Default)]
pub struct Limiter {
    bandwidth: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl Limiter {
    /// With full buckets.
    pub fn new(limits: Limits) -> Self {
        let mut limiter = Self::default();
        limiter.configure(limits, Instant::now());
        limiter
    }

    /// Changes the limits; a bucket that is kept keeps its level.
    pub fn configure(&mut self, limits: Limits, now: Instant) {
        configure(&mut self.bandwidth, limits.bandwidth, now);
        configure(&mut self.operations, limits.operations, now);
    }

    /// One operation of `bytes` bytes, now.
    ///
    /// # Errors
    /// How long to wait until it may go; nothing was taken from either bucket.
    pub fn admit(&mut self, bytes: u64) -> Result<(), Duration> {
        if self.bandwidth.is_none() && self.operations.is_none() {
            return Ok(());
        }
        self.admit_at(bytes, Instant::now())
    }

    /// Whether an operation whose size is known only afterwards may begin: nothing is owed.
    ///
    /// # Errors
    /// How long to wait until it may.
    pub fn ready(&mut self) -> Result<(), Duration> {
        if self.bandwidth.is_none() && self.operations.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        let needed = [&mut self.bandwidth, &mut self.operations]
            .into_iter()
            .filter_map(|bucket| bucket.as_mut()?.check(1, now).err())
            .max();
        needed.map_or(Ok(()), Err)
    }

    /// Takes note of an operation of `bytes` bytes that [`Self::ready`] let begin. What exceeds the limit is
    /// owed, so that the rate holds all the same.
    pub fn spend(&mut self, bytes: u64) {
        if self.bandwidth.is_none() && self.operations.is_none() {
            return;
        }
        let now = Instant::now();
        for (bucket, amount) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.spend(amount, now);
            }
        }
    }

    fn admit_at(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut wait = None;
        for (bucket, amount) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(Err(needed)) = bucket.as_mut().map(|bucket| bucket.check(amount, now)) {
                wait = wait.max(Some(needed));
            }
        }
        if let Some(wait) = wait {
            let mut grain = GRAIN;
            for bucket in [&mut self.bandwidth, &mut self.operations].into_iter().flatten() {
                // Half, since nobody wakes up in time.
                grain = grain.min(bucket.until_full(now) / 2);
            }
            return Err(wait.max(grain));
        }
        for (bucket, amount) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            bucket.as_mut().map_or(Ok(()), |bucket| bucket.take(amount, now))?;
        }
        Ok(())
    }
}

fn configure(bucket: &mut Option<TokenBucket>, config: Option<BucketConfig>, now: Instant) {
    match (bucket.as_mut(), config) {
        (Some(bucket), Some(config)) => bucket.configure(config, now),
        (_, config) => *bucket = config.map(|config| TokenBucket::new(config, now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_operation_takes_nothing_from_either_bucket() {
        let now = Instant::now();
        let limits = Limits {
            bandwidth: Some(BucketConfig { rate: 100, burst: 100 }),
            operations: Some(BucketConfig { rate: 1, burst: 2 }),
        };
        let mut limiter = Limiter::default();
        limiter.configure(limits, now);
        assert_eq!(limiter.admit_at(90, now), Ok(()));
        for _ in 0..5 {
            assert_eq!(limiter.admit_at(60, now), Err(Duration::from_millis(500)));
        }
        assert_eq!(limiter.admit_at(10, now), Ok(()));
        assert_eq!(limiter.admit_at(0, now), Err(Duration::from_secs(1)));
        limiter.configure(Limits { operations: None, ..limits }, now);
        assert_eq!(limiter.admit_at(0, now), Ok(()));
    }

    #[test]
    fn what_was_spent_beyond_the_limit_is_waited_for() {
        let limits = Limits { bandwidth: Some(BucketConfig { rate: 1, burst: 10 }), operations: None };
        let mut limiter = Limiter::new(limits);
        assert_eq!(limiter.ready(), Ok(()));
        limiter.spend(1000);
        assert!(limiter.ready().is_err_and(|wait| wait > Duration::from_secs(900)));
    }

    #[test]
    fn waits_are_long_enough_to_be_few_and_lose_nothing() {
        let start = Instant::now();
        for (rate, burst) in [(100_000, 1000), (100_000, 1), (3, 1), (7, 100), (1_000_000, 50)] {
            let operations = Some(BucketConfig { rate, burst });
            let mut limiter = Limiter::default();
            limiter.configure(Limits { operations, bandwidth: None }, start);
            let (mut now, mut done, mut waits) = (start, 0, 0);
            while done < burst + 500 {
                match limiter.admit_at(0, now) {
                    Ok(()) => done += 1,
                    Err(wait) => {
                        now += wait;
                        waits += 1;
                    }
                }
            }
            // The last of them came when the time for it had come, and at most a millisecond later.
            let due = Duration::from_nanos((500 * 1_000_000_000u64).div_ceil(rate));
            assert!(
                now - start >= due && now - start <= due + GRAIN + Duration::from_micros(1),
                "{rate} {burst}"
            );
            let longest = GRAIN.min(Duration::from_nanos(burst * 500_000_000 / rate));
            assert!(
                Duration::from_nanos(500_000_000_000 / rate) >= longest * (waits - 1) / 2,
                "{rate} {burst}"
            );
        }
    }
}
