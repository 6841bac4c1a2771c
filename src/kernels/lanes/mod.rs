//! Sixteen numbers side by side: what row-wise ops compute with.
//!
//! One body, generic over [`Lanes`], is compiled for each kind of CPU by `multiversion!`; plain loops
//! would leave it to the optimiser, and to its level, whether vector code comes out.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use half::bf16;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;

/// How many.
pub const LANES: usize = 16;

/// Sixteen f32. Implementations for a CPU must only be used in functions compiled for it.
pub trait Lanes: Copy {
    /// Sixteen u64, of whose upper halves the methods below do not depend.
    type Wide: Copy;
    /// Sixteen u32.
    type Bits: Copy;

    fn splat(x: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn load_bf16(from: &[bf16; LANES]) -> Self;
    /// Rounded to the nearest, ties to even.
    fn store_bf16(self, to: &mut [bf16; LANES]);
    /// Words of two bf16, those of `first` in the low halves.
    fn store_pairs(first: Self, second: Self, to: &mut [u32; LANES]);
    /// [`Self::store_pairs`] of numbers that are bf16 already.
    #[inline(always)]
    fn zip_bf16(first: &[bf16; LANES], second: &[bf16; LANES], to: &mut [u32; LANES]) {
        for (to, (low, high)) in to.iter_mut().zip(first.iter().zip(second)) {
            *to = u32::from(low.to_bits()) | (u32::from(high.to_bits()) << 16);
        }
    }
    /// Exchanges rows and columns of words.
    #[inline(always)]
    fn transpose(square: &mut [[u32; LANES]; LANES]) {
        for i in 0..LANES {
            for j in 0..i {
                let swapped = square[j][i];
                square[j][i] = square[i][j];
                square[i][j] = swapped;
            }
        }
    }
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    /// `self * b + c`, rounded once if the CPU can.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self > other ? self : other`, so `other` if either is NaN.
    fn larger(self, other: Self) -> Self;
    /// `self < other ? self : other`, so `other` if either is NaN.
    fn smaller(self, other: Self) -> Self;
    /// 2^n, for n in [-126, 127] in the lowest bits of the numbers' mantissas.
    fn power_of_two(self) -> Self;
    /// 2^x within 3e-6 relatively, 0 for x below -150; for x at most 127. NaN stays NaN.
    #[inline(always)]
    fn exp2(self) -> Self {
        /// Adding it leaves the rounded integer in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        let x = Self::splat(-126.0).larger(self);
        let shifted = x.add(Self::splat(ROUND));
        let r = x.sub(shifted.sub(Self::splat(ROUND)));
        exp2_of_fraction(r).mul(shifted.power_of_two())
    }
    /// The first `n` lanes, and `rest` in the others, if any.
    fn first(self, n: usize, rest: f32) -> Self;
    /// Their sum, by halves: lanes i and i + 8, then i and i + 4, and so on.
    fn sum(self) -> f32;
    /// The largest.
    fn largest(self) -> f32;

    fn wide_splat(x: u64) -> Self::Wide;
    /// `first`, `first + 1`, … in the lower halves.
    fn wide_count(first: u32) -> Self::Wide;
    /// The lower halves times `factor`, in 64 bits.
    fn wide_mul(a: Self::Wide, factor: u32) -> Self::Wide;
    /// `(a >> 32) ^ b ^ key`.
    fn wide_mix(a: Self::Wide, b: Self::Wide, key: u64) -> Self::Wide;
    /// The lower halves.
    fn wide_lower(a: Self::Wide) -> Self::Bits;
    /// `value` where 16 of a lane's bits are at least `threshold`, else 0; `upper` says which 16.
    fn bits_select(a: Self::Bits, upper: bool, threshold: u32, value: f32) -> Self;

    /// The first numbers of a slice, zeros where it has none.
    #[inline(always)]
    fn load_part(from: &[f32]) -> Self {
        if let Some(full) = from.first_chunk() {
            Self::load(full)
        } else {
            let mut padded = [0.0; LANES];
            padded[..from.len()].copy_from_slice(from);
            Self::load(&padded)
        }
    }

    /// Into a slice's first places, as many as there are.
    #[inline(always)]
    fn store_part(self, to: &mut [f32]) {
        if let Some(full) = to.first_chunk_mut() {
            self.store(full);
        } else {
            let mut padded = [0.0; LANES];
            self.store(&mut padded);
            to.copy_from_slice(&padded[..to.len()]);
        }
    }
}

/// 2^r for r in [-0.5, 0.5]: a fit with equal relative error.
#[inline(always)]
fn exp2_of_fraction<S: Lanes>(r: S) -> S {
    let p = S::splat(9.570_057_5e-3);
    let p = p.mul_add(r, S::splat(5.591_785_5e-2));
    let p = p.mul_add(r, S::splat(0.240_247_46));
    let p = p.mul_add(r, S::splat(0.693_121_8));
    p.mul_add(r, S::splat(0.999_999_3))
}

/// For any CPU.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (x, y) in self.0.iter_mut().zip(other.0) {
            *x = f(*x, y);
        }
        self
    }

    #[inline(always)]
    fn fold(mut self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut n = LANES / 2;
        while n > 0 {
            for i in 0..n {
                self.0[i] = f(self.0[i], self.0[i + n]);
            }
            n /= 2;
        }
        self.0[0]
    }
}

impl Lanes for Portable {
    type Wide = [u64; LANES];
    type Bits = [u32; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        Self(from.map(bf16::to_f32))
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; LANES]) {
        *to = self.0.map(bf16::from_f32);
    }
    #[inline(always)]
    fn store_pairs(first: Self, second: Self, to: &mut [u32; LANES]) {
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        for (i, word) in to.iter_mut().enumerate() {
            *word = bits(first.0[i]) | (bits(second.0[i]) << 16);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |x, y| x / y)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.zip(self, |x, _| x.sqrt())
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        self.mul(b).add(c)
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.zip(other, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        self.zip(other, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.zip(self, |x, _| {
            f32::from_bits((x.to_bits() << 23).wrapping_add(1f32.to_bits()))
        })
    }
    #[inline(always)]
    fn first(mut self, n: usize, rest: f32) -> Self {
        if n < LANES {
            self.0[n..].fill(rest);
        }
        self
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|x, y| x + y)
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(|x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    fn wide_splat(x: u64) -> Self::Wide {
        [x; LANES]
    }
    #[inline(always)]
    fn wide_count(first: u32) -> Self::Wide {
        let mut count = [u64::from(first); LANES];
        for (lane, x) in count.iter_mut().enumerate() {
            *x += lane as u64;
        }
        count
    }
    #[inline(always)]
    fn wide_mul(mut a: Self::Wide, factor: u32) -> Self::Wide {
        for x in &mut a {
            *x = (*x & 0xFFFF_FFFF) * u64::from(factor);
        }
        a
    }
    #[inline(always)]
    fn wide_mix(mut a: Self::Wide, b: Self::Wide, key: u64) -> Self::Wide {
        for (a, b) in a.iter_mut().zip(b) {
            *a = (*a >> 32) ^ b ^ key;
        }
        a
    }
    #[inline(always)]
    fn wide_lower(a: Self::Wide) -> Self::Bits {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
        a.map(|x| x as u32)
    }
    #[inline(always)]
    fn bits_select(a: Self::Bits, upper: bool, threshold: u32, value: f32) -> Self {
        Self(a.map(|x| {
            let draw = if upper { x >> 16 } else { x & 0xFFFF };
            if draw >= threshold { value } else { 0.0 }
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::kernels::cpu::{Cpu, multiversion};

    multiversion! {
        /// Each method's answer to two rows of numbers.
        fn answers<S: Lanes>(a: &[f32; 16], b: &[f32; 16], out: &mut Vec<[f32; 16]>) {
            let (x, y) = (S::load(a), S::load(b));
            let shifted = S::load(&std::array::from_fn(|i| 12_582_912.0 + i as f32 * 8.0 - 64.0));
            let mut keep = |x: S| {
                let mut row = [0.0; 16];
                x.store(&mut row);
                out.push(row);
            };
            for z in [x.add(y), x.sub(y), x.mul(y), x.larger(y), x.smaller(y), shifted.power_of_two(), x.first(0, 2.0), x.first(5, f32::NEG_INFINITY), x.first(13, 0.0), x.first(99, 1.0), x.div(y), x.sqrt()] {
                keep(z);
            }
            keep(S::splat(x.sum()));
            keep(S::splat(y.largest()));
            let count = S::wide_count(u32::MAX - 3);
            let product = S::wide_mul(S::wide_mix(S::wide_mul(count, 0xD251_1F53), count, 77), 0xCD9E_8D57);
            for word in [product, S::wide_mix(product, S::wide_splat(0x1234_5678_9ABC), 5)] {
                let word = S::wide_lower(word);
                keep(S::bits_select(word, false, 0x8000, 2.5));
                keep(S::bits_select(word, true, 0x1234, 1.5));
            }
            let (mut short, mut words) = ([half::bf16::ZERO; 16], [0; 16]);
            x.store_bf16(&mut short);
            keep(S::load_bf16(&short));
            y.store_bf16(&mut short);
            keep(S::load_bf16(&short));
            S::store_pairs(x, y, &mut words);
            keep(S::load(&words.map(f32::from_bits)));
        }
    }

    multiversion! {
        fn powers<S: Lanes>(x: &[f32; 16], out: &mut [f32; 16]) {
            S::load(x).exp2().store(out);
        }
    }

    #[test]
    fn powers_of_two_are_close_and_underflow_to_zero() {
        let mut x: [f32; 16] = std::array::from_fn(|i| 5.3 - 9.17 * i as f32);
        (x[13], x[14], x[15]) = (-1e30, f32::NEG_INFINITY, f32::NAN);
        for cpu in Cpu::each() {
            let mut y = [0f32; 16];
            powers(cpu, &x, &mut y);
            for (x, y) in x.iter().zip(y).take(13) {
                let expected = f64::from(*x).exp2();
                assert!(
                    (f64::from(y) / expected - 1.0).abs() < 3e-6,
                    "{cpu:?} {x} {y}"
                );
            }
            assert!(
                y[13] < 1e-37 && y[14] < 1e-37 && y[15].is_nan(),
                "{cpu:?} {y:?}"
            );
        }
    }

    #[test]
    fn every_cpu_gives_the_same_bits() {
        let a: [f32; 16] = std::array::from_fn(|i| 1.0 / (i as f32 + 3.0));
        let mut b: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.3) / 9.0);
        b[2] = f32::NAN;
        let mut all = Cpu::each().map(|cpu| {
            let mut out = Vec::new();
            answers(cpu, &a, &b, &mut out);
            out.iter()
                .map(|row| row.map(f32::to_bits))
                .collect::<Vec<_>>()
        });
        let first = all.next().unwrap();
        assert_eq!(f32::from_bits(first[5][8]), 1.0);
        assert_eq!(f32::from_bits(first[5][9]), 256.0);
        assert!(f32::from_bits(first[3][2]).is_nan() && f32::from_bits(first[4][2]).is_nan());
        for other in all {
            assert_eq!(first, other);
        }
    }
}
