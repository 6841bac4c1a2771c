//! Counter-based dropout: whether an element is kept is a pure function of (seed, step, site, token,
//! column), so no mask is stored, resuming needs no generator state, and neither the number of threads nor
//! a sequence's neighbours in the batch change it.
//!
//! The bits are Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): counter =
//! (column block, site, token key), key = (seed, step). One block gives eight 16-bit draws; an element is
//! dropped when its draw is below `p * 65536`.

use super::cpu::{Cpu, multiversion};

const ROUNDS: usize = 10;
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Blocks computed side by side, so that the compiler can use vector registers.
const LANES: usize = 16;
/// The lower half of a u64.
const LOW: u64 = 0xFFFF_FFFF;
/// Elements decided by one block.
const DRAWS: usize = 8;
/// Elements decided at a time.
const GROUP: usize = LANES * DRAWS;

/// Names one dropout layer's masks at one step.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    threshold: u32,
    scale: f32,
    key: [u32; 2],
    site: u32,
}

impl Dropout {
    /// Keeps everything: evaluation, or probability 0.
    pub const NONE: Self = Self {
        threshold: 0,
        scale: 1.0,
        key: [0; 2],
        site: 0,
    };

    /// Drops elements with `probability` in [0, 1), rounded to 1/65536, and scales the rest by 1/(1-p).
    /// `site` tells the dropout layers of a model apart.
    pub fn new(probability: f32, seed: u64, step: u64, site: u32) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a probability below 1 times 65536 fits"
        )]
        let threshold = (probability.clamp(0.0, 1.0) * 65536.0).round() as u32;
        if threshold == 0 {
            return Self::NONE;
        }
        let threshold = threshold.min(65535);
        let mixed = (seed ^ 0x6368_616E_646C_6572).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ step;
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let key = [mixed as u32, (mixed >> 32) as u32];
        #[expect(clippy::cast_precision_loss, reason = "at most 65536")]
        let scale = 65536.0 / (65536 - threshold) as f32;
        Self {
            threshold,
            scale,
            key,
            site,
        }
    }

    /// Whether every element is kept.
    pub fn is_none(&self) -> bool {
        self.threshold == 0
    }

    /// Factors for one row: `out[i]` becomes 0 where column `i` is dropped, else 1/(1-p). `token` names the
    /// row: for hidden states the token's key, for attention the query's key mixed with its head.
    pub fn factors(&self, token: u64, out: &mut [f32]) {
        fill_factors(Cpu::best(), self, token, out);
    }

    /// Multiplies a row by its factors.
    pub fn apply(&self, token: u64, row: &mut [f32]) {
        if !self.is_none() {
            multiply_by_factors(Cpu::best(), self, token, row);
        }
    }

    /// [`Self::factors`], to be compiled for its caller's CPU.
    #[inline(always)]
    pub fn factors_inline(&self, token: u64, out: &mut [f32]) {
        if self.is_none() {
            out.fill(1.0);
            return;
        }
        for (group, chunk) in out.chunks_mut(GROUP).enumerate() {
            if let Some(chunk) = chunk.first_chunk_mut() {
                *chunk = self.group(token, group);
            } else {
                let factors = self.group(token, group);
                chunk.copy_from_slice(&factors[..chunk.len()]);
            }
        }
    }

    /// The factors of columns `group * GROUP ..`.
    #[inline(always)]
    fn group(&self, token: u64, group: usize) -> [f32; GROUP] {
        let words = self.blocks(token, group * LANES);
        let mut factors = [0f32; GROUP];
        for (draw, part) in factors.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let shift = 16 * (draw % 2);
            for lane in 0..LANES {
                let bits = (words[draw / 2][lane] >> shift) & 0xFFFF;
                part[lane] = if bits < self.threshold {
                    0.0
                } else {
                    self.scale
                };
            }
        }
        factors
    }

    /// Philox of `LANES` consecutive counters starting at `first`; word-major.
    #[inline(always)]
    fn blocks(&self, token: u64, first: usize) -> [[u32; LANES]; 4] {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rows are far shorter than 2^32 columns, and there are 16 lanes"
        )]
        let block = |lane: usize| u64::from((first as u32).wrapping_add(lane as u32));
        let counter = [
            std::array::from_fn(block),
            [u64::from(self.site); LANES],
            [token & LOW; LANES],
            [token >> 32; LANES],
        ];
        philox(counter, self.key)
    }
}

multiversion! {
    fn fill_factors(dropout: &Dropout, token: u64, out: &mut [f32]) {
        dropout.factors_inline(token, out);
    }
}

multiversion! {
    fn multiply_by_factors(dropout: &Dropout, token: u64, row: &mut [f32]) {
        for (group, chunk) in row.chunks_mut(GROUP).enumerate() {
            let factors = dropout.group(token, group);
            for (x, factor) in chunk.iter_mut().zip(&factors) {
                *x *= factor;
            }
        }
    }
}

/// The key of the token at `position` of the sequence named `sequence` (its row in the dataset).
pub fn token_key(sequence: u64, position: u32) -> u64 {
    (sequence << 16) | u64::from(position & 0xFFFF)
}

/// The key of a query row of attention: the token's key told apart by head (below 256).
pub fn attention_key(token: u64, head: u32) -> u64 {
    (token & 0x00FF_FFFF_FFFF_FFFF) | (u64::from(head) << 56)
}

/// Words are the lower halves of u64 lanes: vector units multiply these without moving them about. The
/// upper halves are whatever the last multiplication left there.
#[inline(always)]
fn philox(mut counter: [[u64; LANES]; 4], mut key: [u32; 2]) -> [[u32; LANES]; 4] {
    for _ in 0..ROUNDS {
        let [k0, k1] = key.map(u64::from);
        let [mut c0, mut c1, mut c2, mut c3] = counter;
        for lane in 0..LANES {
            let first = (c0[lane] & LOW) * u64::from(MULTIPLIER[0]);
            let second = (c2[lane] & LOW) * u64::from(MULTIPLIER[1]);
            c0[lane] = (second >> 32) ^ c1[lane] ^ k0;
            c1[lane] = second;
            c2[lane] = (first >> 32) ^ c3[lane] ^ k1;
            c3[lane] = first;
        }
        counter = [c0, c1, c2, c3];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower halves are the words"
    )]
    counter.map(|words| words.map(|word| word as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the paper's reference implementation (philox4x32, 10 rounds).
    #[test]
    fn philox_gives_the_published_answers() {
        let all = |x: u32| [[u64::from(x); LANES]; 4];
        let zeros = philox(all(0), [0, 0]);
        let expected = [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8];
        assert_eq!(zeros.map(|w| w[3]), expected);
        let ones = philox(all(u32::MAX), [u32::MAX; 2]);
        let expected = [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD];
        assert_eq!(ones.map(|w| w[0]), expected);
    }

    #[test]
    fn the_share_dropped_is_the_probability_and_the_mean_stays() {
        let dropout = Dropout::new(0.1, 7, 3, 1);
        let mut row = vec![0f32; 1000];
        let (mut dropped, mut sum) = (0usize, 0f64);
        for token in 0..200 {
            dropout.factors(token, &mut row);
            dropped += row.iter().filter(|&&x| x == 0.0).count();
            sum += row.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        assert!((dropped as f64 / 200_000.0 - 0.1).abs() < 0.003);
        assert!((sum / 200_000.0 - 1.0).abs() < 0.004);
    }

    #[test]
    fn masks_depend_on_each_part_of_the_counter_and_on_nothing_else() {
        let mask = |seed, step, site, token| {
            let mut row = vec![0f32; 384];
            Dropout::new(0.5, seed, step, site).factors(token, &mut row);
            row
        };
        let base = mask(1, 2, 3, 4);
        assert_eq!(base, mask(1, 2, 3, 4));
        for other in [
            mask(9, 2, 3, 4),
            mask(1, 9, 3, 4),
            mask(1, 2, 9, 4),
            mask(1, 2, 3, 9),
        ] {
            assert_ne!(base, other);
        }
        let mut short = vec![0f32; 100];
        Dropout::new(0.5, 1, 2, 3).factors(4, &mut short);
        assert_eq!(short, base[..100]);
    }

    #[test]
    fn apply_multiplies_by_the_factors() {
        let dropout = Dropout::new(0.3, 5, 6, 7);
        let mut factors = vec![0f32; 300];
        dropout.factors(11, &mut factors);
        let mut row = vec![2f32; 300];
        dropout.apply(11, &mut row);
        let expected: Vec<f32> = factors.iter().map(|f| 2.0 * f).collect();
        assert_eq!(row, expected);
    }

    #[test]
    fn probability_zero_keeps_everything() {
        let mut row = vec![3f32; 10];
        Dropout::new(0.0, 1, 1, 1).apply(0, &mut row);
        assert_eq!(row, [3.0; 10]);
    }
}
