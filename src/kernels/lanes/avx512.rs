//! Lanes of AVX-512: one register.
//!
//! Loads and stores go through full masks: the direct intrinsics carry checks into builds with debug
//! assertions, which tests are, and both compile to the same instruction.

#![expect(
    clippy::cast_possible_wrap,
    reason = "bit patterns; the intrinsics take signed numbers"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::avx2::{largest_8, sum_8};
use super::{LANES, Lanes, exp2_of_fraction};

/// For CPUs with avx512f, avx512bw, avx512dq and avx512vl, and avx512bf16 if `BF16` says so.
#[derive(Clone, Copy)]
pub struct Avx512<const BF16: bool>(__m512);

const FULL: u16 = u16::MAX;

// SAFETY of all blocks in this impl: the trait's users compile it only into functions for a CPU with these
// features; pointers are those of the sixteen numbers' array.
impl<const BF16: bool> Lanes for Avx512<BF16> {
    /// Even lanes, then odd ones, so that their lower halves are joined by one instruction.
    type Wide = [__m512i; 2];
    type Bits = __m512i;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_maskz_loadu_ps(FULL, from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), FULL, self.0) }
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        // SAFETY: see above; a bf16 is 16 bits.
        unsafe {
            let short = _mm256_maskz_loadu_epi16(FULL, from.as_ptr().cast());
            let words = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(short));
            Self(_mm512_castsi512_ps(words))
        }
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; LANES]) {
        // SAFETY: see above; a bf16 is 16 bits.
        unsafe { _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), FULL, rounded::<BF16>(self.0)) }
    }
    #[inline(always)]
    fn store_pairs(first: Self, second: Self, to: &mut [u32; LANES]) {
        // SAFETY: see above; both kinds of vector are 64 bytes without a forbidden value.
        unsafe {
            let words = if BF16 {
                let both = _mm512_cvtne2ps_pbh(second.0, first.0);
                let both = std::mem::transmute::<__m512bh, __m512i>(both);
                _mm512_permutexvar_epi16(interleaving(), both)
            } else {
                let low = _mm512_cvtepu16_epi32(rounded::<BF16>(first.0));
                let high = _mm512_cvtepu16_epi32(rounded::<BF16>(second.0));
                _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
            };
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), FULL, words);
        }
    }
    #[inline(always)]
    fn zip_bf16(first: &[bf16; LANES], second: &[bf16; LANES], to: &mut [u32; LANES]) {
        // SAFETY: see above; a bf16 is 16 bits.
        unsafe {
            let low = _mm256_maskz_loadu_epi16(FULL, first.as_ptr().cast());
            let high = _mm256_maskz_loadu_epi16(FULL, second.as_ptr().cast());
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
            let words = _mm512_or_si512(_mm512_cvtepu16_epi32(low), high);
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), FULL, words);
        }
    }
    /// In four rounds of exchanges between pairs of rows.
    #[inline(always)]
    fn transpose(square: &mut [[u32; LANES]; LANES]) {
        // SAFETY: see above; a row is 16 words.
        unsafe {
            let mut r: [__m512i; LANES] = [_mm512_setzero_si512(); LANES];
            for (r, row) in r.iter_mut().zip(square.iter()) {
                *r = _mm512_maskz_loadu_epi32(FULL, row.as_ptr().cast());
            }
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
            }
            // Each 128-bit lane of r[4 i + j] now holds rows 4 i .. 4 i + 4 of one column; gather the lanes.
            for i in 0..4 {
                t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
                t[i + 4] = _mm512_shuffle_i32x4::<0xDD>(r[i], r[i + 4]);
                t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
                t[i + 12] = _mm512_shuffle_i32x4::<0xDD>(r[i + 8], r[i + 12]);
            }
            for i in 0..8 {
                r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
                r[i + 8] = _mm512_shuffle_i32x4::<0xDD>(t[i], t[i + 8]);
            }
            for (r, row) in r.iter().zip(square) {
                _mm512_mask_storeu_epi32(row.as_mut_ptr().cast(), FULL, *r);
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let one = _mm512_set1_epi32(1f32.to_bits() as i32);
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(n, one)))
        }
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let n = _mm512_roundscale_ps::<0>(self.0);
            let p = exp2_of_fraction(Self(_mm512_sub_ps(self.0, n)));
            Self(_mm512_scalef_ps(p.0, n))
        }
    }
    #[inline(always)]
    fn first(self, n: usize, rest: f32) -> Self {
        if n >= LANES {
            return self;
        }
        // SAFETY: see above.
        unsafe {
            let rest = _mm512_set1_ps(rest);
            Self(_mm512_mask_mov_ps(rest, (1 << n) - 1, self.0))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let [low, high] = halves(self.0);
            sum_8(_mm256_add_ps(low, high))
        }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let [low, high] = halves(self.0);
            largest_8(_mm256_max_ps(low, high))
        }
    }

    #[inline(always)]
    fn wide_splat(x: u64) -> Self::Wide {
        // SAFETY: see above.
        [unsafe { _mm512_set1_epi64(x as i64) }; 2]
    }
    #[inline(always)]
    fn wide_count(first: u32) -> Self::Wide {
        // SAFETY: see above.
        unsafe {
            let first = _mm512_set1_epi64(i64::from(first));
            let even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
            let odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
            [_mm512_add_epi64(first, even), _mm512_add_epi64(first, odd)]
        }
    }
    #[inline(always)]
    fn wide_mul(a: Self::Wide, factor: u32) -> Self::Wide {
        // SAFETY: see above.
        unsafe {
            let factor = _mm512_set1_epi64(i64::from(factor));
            [
                _mm512_mul_epu32(a[0], factor),
                _mm512_mul_epu32(a[1], factor),
            ]
        }
    }
    #[inline(always)]
    fn wide_mix(a: Self::Wide, b: Self::Wide, key: u64) -> Self::Wide {
        /// The table of three inputs' exclusive or.
        const XOR: i32 = 0x96;
        // SAFETY: see above.
        unsafe {
            let key = _mm512_set1_epi64(key as i64);
            let [low, high] = [_mm512_srli_epi64::<32>(a[0]), _mm512_srli_epi64::<32>(a[1])];
            [
                _mm512_ternarylogic_epi64::<XOR>(low, b[0], key),
                _mm512_ternarylogic_epi64::<XOR>(high, b[1], key),
            ]
        }
    }
    #[inline(always)]
    fn wide_lower(a: Self::Wide) -> Self::Bits {
        // SAFETY: see above.
        unsafe { _mm512_mask_shuffle_epi32::<0xA0>(a[0], 0xAAAA, a[1]) }
    }
    #[inline(always)]
    fn bits_select(a: Self::Bits, upper: bool, threshold: u32, value: f32) -> Self {
        // SAFETY: see above.
        unsafe {
            // With the 16 bits on top, those below them do not matter.
            let bits = if upper { a } else { _mm512_slli_epi32::<16>(a) };
            let least = _mm512_set1_epi32((threshold << 16) as i32);
            let keep = _mm512_cmpge_epu32_mask(bits, least);
            Self(_mm512_maskz_mov_ps(keep, _mm512_set1_ps(value)))
        }
    }
}

/// For a permutation that puts 16-bit lane 16 + i beside lane i.
///
/// # Safety
/// The CPU must have avx512f.
#[inline(always)]
unsafe fn interleaving() -> __m512i {
    const PLACES: [i16; 32] = {
        let mut places = [0; 32];
        let mut i = 0;
        while i < 16 {
            places[2 * i] = i as i16;
            places[2 * i + 1] = 16 + i as i16;
            i += 1;
        }
        places
    };
    // SAFETY: the caller's promise; it is 32 numbers of 16 bits.
    unsafe { _mm512_loadu_si512(PLACES.as_ptr().cast()) }
}

/// The nearest bf16, ties to even.
///
/// # Safety
/// The CPU must have avx512f and avx512vl, and avx512bf16 if `BF16`.
#[inline(always)]
unsafe fn rounded<const BF16: bool>(x: __m512) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        if BF16 {
            return std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
        }
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        // Rounding could carry a NaN into infinity.
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let nan = _mm512_cmpunord_ps_mask(x, x);
        let up = _mm512_mask_mov_epi32(up, nan, quiet);
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(up))
    }
}

/// # Safety
/// The CPU must have avx512dq.
#[inline(always)]
unsafe fn halves(x: __m512) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)] }
}
