//! What lanes share: how often, from which seed, and random numbers that come out the same again.
//!
//! A lane is a fault injected again and again. Its short form runs with every `cargo test`, its long form
//! (`#[ignore]`) on request; `tests/LANES.md` lists the commands.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Rounds to run and where chance comes from.
pub struct Lane {
    pub count: u64,
    pub random: Random,
}

impl Lane {
    /// The form of every day: few rounds.
    pub fn short(name: &str, count: u64) -> Self {
        Self::new(name, count)
    }

    /// The form on request: `CHANDLER_LANE_COUNT` rounds, or the scorecard's.
    pub fn long(name: &str, count: u64) -> Self {
        Self::new(name, number("CHANDLER_LANE_COUNT").unwrap_or(count))
    }

    /// Prints the seed, so that `CHANDLER_LANE_SEED` can ask for it again.
    fn new(name: &str, count: u64) -> Self {
        let fresh = RandomState::new().build_hasher().finish() % 1_000_000_000;
        let seed = number("CHANDLER_LANE_SEED").unwrap_or(fresh);
        println!("{name}: {count} rounds, seed {seed}");
        Self {
            count,
            random: Random(seed),
        }
    }
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// SplitMix64: small, and the same everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `low`, less than `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// At least 0, below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}

/// The value below which `percent` of all lie; the list becomes sorted.
pub fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    values
        .get(last * percent / 100)
        .copied()
        .unwrap_or_default()
}
