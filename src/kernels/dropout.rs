//! Counter-based dropout: whether an element is kept is a pure function of (seed, step, site, token,
//! column), so no mask is stored, resuming needs no generator state, and neither the number of threads nor
//! a sequence's neighbours in the batch change it.
//!
//! The bits are Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): counter =
//! (column block, site, token key), key = (seed, step). One block gives eight 16-bit draws; an element is
//! dropped when its draw is below `p * 65536`.

use super::cpu::{Cpu, multiversion};
use super::lanes::{LANES, Lanes};

const ROUNDS: usize = 10;
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Elements decided by one block.
const DRAWS: usize = 8;
/// Elements decided at a time, from one block in each lane.
pub const GROUP: usize = LANES * DRAWS;

/// Names one dropout layer's masks at one step. Laid out as `Dropout` in `cuda/prelude.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
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
        if self.is_none() {
            out.fill(1.0);
        } else {
            fill_factors(Cpu::best(), self, token, out);
        }
    }

    /// Multiplies a row by its factors.
    pub fn apply(&self, token: u64, row: &mut [f32]) {
        if !self.is_none() {
            multiply_by_factors(Cpu::best(), self, token, row);
        }
    }

    /// What decides; nothing if every element is kept. To be asked for once, for many rows.
    #[inline(always)]
    pub fn draws(&self) -> Option<Draws> {
        (!self.is_none()).then_some(Draws {
            keys: keys_of_rounds(self.key),
            site: u64::from(self.site),
            threshold: self.threshold,
            scale: self.scale,
        })
    }
}

/// A dropout layer's decisions at one step, with the generator's key of each round.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    keys: Keys,
    site: u64,
    threshold: u32,
    scale: f32,
}

type Keys = [[u64; 2]; ROUNDS];

impl Draws {
    /// Decides on columns `group * GROUP ..` of a row.
    #[inline(always)]
    pub fn group<S: Lanes>(&self, token: u64, group: usize) -> Group<S> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rows are far shorter than 2^32 columns"
        )]
        let first = (group * LANES) as u32;
        let counter = [
            S::wide_count(first),
            S::wide_splat(self.site),
            S::wide_splat(token),
            S::wide_splat(token >> 32),
        ];
        Group {
            words: lower_halves::<S>(philox::<S>(counter, &self.keys)),
            threshold: self.threshold,
            scale: self.scale,
        }
    }
}

/// The decisions on [`GROUP`] columns of a row.
#[derive(Clone, Copy)]
pub struct Group<S: Lanes> {
    words: [S::Bits; 4],
    threshold: u32,
    scale: f32,
}

impl<S: Lanes> Group<S> {
    /// The factors of columns `draw * LANES ..` of the group.
    #[inline(always)]
    pub fn factors(&self, draw: usize) -> S {
        S::bits_select(
            self.words[draw / 2],
            draw % 2 == 1,
            self.threshold,
            self.scale,
        )
    }
}

multiversion! {
    fn fill_factors<S: Lanes>(dropout: &Dropout, token: u64, out: &mut [f32]) {
        let Some(draws) = dropout.draws() else { return };
        for (group, chunk) in out.chunks_mut(GROUP).enumerate() {
            let group = draws.group::<S>(token, group);
            for (draw, part) in chunk.chunks_mut(LANES).enumerate() {
                group.factors(draw).store_part(part);
            }
        }
    }
}

multiversion! {
    fn multiply_by_factors<S: Lanes>(dropout: &Dropout, token: u64, row: &mut [f32]) {
        let Some(draws) = dropout.draws() else { return };
        for (group, chunk) in row.chunks_mut(GROUP).enumerate() {
            let group = draws.group::<S>(token, group);
            for (draw, part) in chunk.chunks_mut(LANES).enumerate() {
                S::load_part(part).mul(group.factors(draw)).store_part(part);
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

#[inline(always)]
fn keys_of_rounds(mut key: [u32; 2]) -> Keys {
    let mut keys = [[0; 2]; ROUNDS];
    for round in &mut keys {
        *round = [u64::from(key[0]), u64::from(key[1])];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    keys
}

/// Sixteen counters at once; a word is the lower half of a wide lane, as vector units multiply these
/// without moving them about.
#[inline(always)]
fn philox<S: Lanes>(counter: [S::Wide; 4], keys: &Keys) -> [S::Wide; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for key in keys {
        let first = S::wide_mul(c0, MULTIPLIER[0]);
        let second = S::wide_mul(c2, MULTIPLIER[1]);
        c0 = S::wide_mix(second, c1, key[0]);
        c1 = second;
        c2 = S::wide_mix(first, c3, key[1]);
        c3 = first;
    }
    [c0, c1, c2, c3]
}

/// (A closure for each would not be compiled for the caller's CPU.)
#[inline(always)]
fn lower_halves<S: Lanes>([a, b, c, d]: [S::Wide; 4]) -> [S::Bits; 4] {
    [
        S::wide_lower(a),
        S::wide_lower(b),
        S::wide_lower(c),
        S::wide_lower(d),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the paper's reference implementation (philox4x32, 10 rounds).
    #[test]
    fn philox_gives_the_published_answers() {
        type Portable = crate::kernels::lanes::Portable;
        let answer = |counter: u64, key: u32| {
            let keys = keys_of_rounds([key; 2]);
            philox::<Portable>([[counter; LANES]; 4], &keys).map(|words| words[3] & 0xFFFF_FFFF)
        };
        let expected = [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8];
        assert_eq!(answer(0, 0), expected);
        let expected = [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD];
        assert_eq!(answer(0xFFFF_FFFF, u32::MAX), expected);
    }

    #[test]
    fn every_cpu_decides_alike() {
        let dropout = Dropout::new(0.3, 1 << 40, 9, 77);
        let all: Vec<Vec<f32>> = Cpu::each()
            .map(|cpu| {
                let mut row = vec![0f32; 300];
                fill_factors(cpu, &dropout, 0x1234_5678_9ABC_DEF0, &mut row);
                row
            })
            .collect();
        assert!(all.iter().all(|row| *row == all[0]));
    }

    /// The decisions are part of what makes a job reproducible: they must not change between versions.
    #[test]
    fn decisions_stay_what_they_are() {
        let mut row = vec![0f32; 300];
        Dropout::new(0.5, 1, 2, 3).factors(4, &mut row);
        let kept: Vec<usize> = (0..300).filter(|&i| row[i] > 0.0).collect();
        assert_eq!(kept.len(), 157);
        assert_eq!(kept[..8], [1, 6, 7, 8, 9, 10, 11, 13]);
        assert_eq!(kept.iter().sum::<usize>(), 23514);
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
