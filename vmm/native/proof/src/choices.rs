//! Where random decisions come from: a seed (tests) or a fuzzer's bytes.

use strato_virtio::mock::SeededRandom;

/// A source of decisions that can always be repeated.
#[derive(Debug)]
pub enum Choices<'a> {
    /// Never ends.
    Seeded(SeededRandom),
    /// Ends with the bytes; then every decision is 0.
    Bytes(&'a [u8]),
}

impl Choices<'_> {
    /// Decisions that follow from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self::Seeded(SeededRandom::new(seed))
    }

    /// Whether nothing is left to decide with.
    pub fn exhausted(&self) -> bool {
        matches!(self, Self::Bytes([]))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        match self {
            Self::Seeded(random) => random.next_u64(),
            Self::Bytes(_) => {
                let mut raw = [0; 8];
                self.fill(&mut raw);
                u64::from_le_bytes(raw)
            }
        }
    }

    /// A number below `bound` (0 if that is 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        match self {
            Self::Seeded(random) => random.below(bound),
            Self::Bytes(_) => {
                // As few bytes as the bound needs: a fuzzer's change then changes one decision.
                let bytes = (64 - bound.leading_zeros() as usize).div_ceil(8);
                let mut raw = [0; 8];
                self.fill(&mut raw[..bytes]);
                u64::from_le_bytes(raw).checked_rem(bound).unwrap_or(0)
            }
        }
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `values`.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// Fills `data`.
    pub fn fill(&mut self, data: &mut [u8]) {
        match self {
            Self::Seeded(random) => random.fill(data),
            Self::Bytes(bytes) => {
                let count = data.len().min(bytes.len());
                let (now, later) = bytes.split_at(count);
                data[..count].copy_from_slice(now);
                data[count..].fill(0);
                *bytes = later;
            }
        }
    }

    /// A length: mostly small, now and then at a border, seldom absurd.
    pub fn length(&mut self) -> u32 {
        match self.below(8) {
            0 => 0,
            1..=3 => self.below(64) as u32,
            4 | 5 => self.below(5000) as u32,
            6 => 1 << self.below(17),
            _ => self.number() as u32,
        }
    }
}
